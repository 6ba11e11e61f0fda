"""PEFT's adapters: adapter_config.json next to adapter_model.safetensors, or a bare file.

Keys are ``base_model.model.<module>.`` and then

lora_A.weight, lora_B.weight          factors (r, in), (out, r); of a convolution (r, in, *kernel),
                                      (out, r, 1, ...)
lora_embedding_A, lora_embedding_B    factors (r, vocabulary), (dim, r)
lora_magnitude_vector                 norms of the rows (out,) of DoRA; of a convolution
                                      (1, out, 1, ...)
lora_B.bias                           what lora_bias adds to the bias of the base, before the scale
bias, base_layer.bias                 biases trained with bias="all" or "lora_only"
token_adapter.trainable_tokens_delta  new embeddings of some tokens
anything                              parameters of a module of modules_to_save, whole

The prefix may be missing, and the name of the adapter may stand behind ``lora_A``, as in the state
of a model; wrappers of training are left out of the names. A key that is none of these is refused
by name: no tensor is skipped in silence.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

import torch

from gam_merge._common.errors import GamMergeError, collecting
from gam_merge._common.tensors import LazyTensor, dtype_name
from gam_merge._read import peft_config
from gam_merge._read.adapter import Adapter, Extra, LoraModule
from gam_merge._read.diffusers import METADATA_KEY
from gam_merge._read.format import Contents, Format
from gam_merge._read.layout import ConvLayout, EmbeddingLayout, ExpertsLayout, Layout
from gam_merge._read.peft_names import PREFIX, unwrapped
from gam_merge._read.peft_output import disagreements, merged_config
from gam_merge._read.whole_model import check_keys

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME, PICKLE_NAME = "adapter_model.safetensors", "adapter_model.bin"

_LORA = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?P<infix>[^.]+))??(?P<suffix>\.weight|\.bias)?"
)
_PARTS = {  # part and suffix of a key -> what it is of its module
    ("A", ".weight"): "A",
    ("B", ".weight"): "B",
    ("B", ".bias"): "bias",
    ("embedding_A", None): "embedding_A",
    ("embedding_B", None): "embedding_B",
    ("magnitude_vector", None): "magnitude",
    ("magnitude_vector", ".weight"): "magnitude",
}
_TOKENS = re.compile(r"(.+\.token_adapter\.trainable_tokens_delta)(?:\.[^.]+)?")
_BASE = re.compile(r".+\.(base_layer\.weight|original_module\..+)")
# With bias="all" PEFT saves the biases of such modules under two names.
_SAVED_TWICE = ".modules_to_save."
# The parameters of stacked experts in the order in which PEFT wraps them, that of their models.
_EXPERTS = ("gate_up_proj", "down_proj")
_INTEGERS = (torch.int64, torch.int32)  # of counters
# PEFT saves embeddings whole when the vocabulary has grown, or a tied one is trained.
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "shared", "word_embeddings")


class Peft(Format):
    """The format of the library PEFT, which vLLM, SGLang and diffusers read, too."""

    name = "peft"
    config_name = CONFIG_NAME
    weights_names = (WEIGHTS_NAME, PICKLE_NAME)
    file_suffix = None

    def config_names(self, weights: PurePath) -> tuple[str, ...]:
        return f"{weights.stem}.json", f"{weights.stem}_config.json", self.config_name

    def recognizes(self, contents: Contents) -> bool:
        if contents.config is None or METADATA_KEY in contents.metadata:
            return any(PREFIX in key for key in contents.tensors)
        return any(_LORA.fullmatch(unwrapped(key)[0]) for key in contents.tensors)

    def parse(self, contents: Contents, problems: list[str] | None = None) -> Adapter:
        if (contents.config or {}).get("peft_type") in (None, "LORA"):
            check_keys(contents.where, contents.tensors.keys())
        config, given = _completed(contents)
        peft_config.check_base(str(contents.config_file or contents.where), config)
        adapter = _Parser(contents.where, config, problems).parse(contents)
        if contents.bare and contents.config_file and contents.config_file.name == self.config_name:
            _check_belongs(contents, adapter)
        return replace(adapter, given=given)

    def describe(self, adapter: Adapter, sources: Sequence[Adapter] = ()) -> Adapter:
        notes = (*adapter.notes, *disagreements(sources))
        return replace(_described(adapter, merged_config(adapter, sources)), notes=notes)

    def module_tensors(self, module: LoraModule) -> dict[str, LazyTensor]:
        stem = f"{PREFIX}{module.name}."
        if isinstance(module.layout, EmbeddingLayout):
            tensors = {f"{stem}lora_embedding_A": module.a, f"{stem}lora_embedding_B": module.b}
        else:
            tensors = {f"{stem}lora_A.weight": module.a, f"{stem}lora_B.weight": module.b}
        if module.magnitude is not None:
            tensors[f"{stem}lora_magnitude_vector"] = module.magnitude
        return tensors

    def extra_tensors(self, extra: Extra, modules: Collection[str]) -> dict[str, LazyTensor]:
        module = extra.name.removesuffix(".bias")
        if extra.kind == "bias" and module in modules:
            return {f"{PREFIX}{module}.base_layer.bias": extra.tensor}
        return {f"{PREFIX}{extra.name}": extra.tensor}


def _completed(contents: Contents) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the config, with what the user had to give in its place, and that alone."""
    config, given = contents.config, dict[str, Any]()
    if config is None and (contents.alpha is None or contents.base_model is None):
        names = ", ".join(Peft().config_names(PurePath(contents.where))[:2])
        raise GamMergeError(
            f"{contents.where}: no config next to it ({names} or {Peft.config_name}); "
            "give --base and --alpha (base_model= and alpha= in Python)"
        )
    config = {} if config is None else config
    if contents.base_model is not None and "base_model_name_or_path" not in config:
        given["base_model"] = contents.base_model
        config = {**config, "base_model_name_or_path": contents.base_model}
    if contents.alpha is not None and "lora_alpha" not in config:
        given["alpha"] = contents.alpha
        config = {**config, "lora_alpha": contents.alpha}
    return config, given


def _described(adapter: Adapter, config: Mapping[str, Any]) -> Adapter:
    """Return the adapter with what its config says of it."""
    return replace(
        adapter,
        format=Peft.name,
        config=dict(config),
        alpha=peft_config.alpha(config),
        task=peft_config.task(config),
        transposed=bool(config.get("fan_in_fan_out")),
        tokens=peft_config.tokens(config),
        ties_weights=bool(config.get("ensure_weight_tying")),
        settings=peft_config.settings(config),
    )


def _check_belongs(contents: Contents, adapter: Adapter) -> None:
    """Raise GamMergeError if a config that several files may share names other modules.

    Ranks are checked in any case. Where the config names modules as a list, those of the file must
    be among them.
    """
    listed = adapter.config.get("target_modules")
    weights = contents.file
    if weights is None or not isinstance(listed, list):
        return
    siblings = [file for file in weights.parent.glob("*.safetensors") if file != weights]
    if not siblings:
        return
    ends = tuple(f".{name}" for name in listed)
    for name, module in adapter.modules.items():
        if not isinstance(module.layout, ExpertsLayout) and not f".{name}".endswith(ends):
            raise GamMergeError(
                f"{weights}: module {name} is not one that the {Peft.config_name} next to it and "
                f"{siblings[0].name} names; put its own config next to it as {weights.stem}.json"
            )


@dataclass
class _Parser:
    """The tensors of a file, sorted by what their keys say."""

    where: str
    config: Mapping[str, Any]
    problems: list[str] | None
    parts: dict[str, dict[str, LazyTensor]] = field(
        default_factory=dict[str, dict[str, LazyTensor]]
    )  # module -> part -> tensor
    extras: dict[str, Extra] = field(default_factory=dict[str, Extra])
    infixes: set[str] = field(default_factory=set[str])
    wrappers: set[str] = field(default_factory=set[str])  # that the names of the file have

    def parse(self, contents: Contents) -> Adapter:
        for check in peft_config.CHECKS:
            with collecting(self.problems):
                check(self.where, self.config)
        keys = sorted(contents.tensors, key=lambda key: _SAVED_TWICE in key)
        for key in keys:
            with collecting(self.problems):
                self._sort_in(key, contents.tensors[key])
        modules = self._modules()
        with collecting(self.problems):
            self._check_whole()
        with collecting(self.problems):
            self._check_saved()
        base_model = (self.config.get("base_model_name_or_path") or "").strip() or None
        extras = dict(sorted(self.extras.items()))
        adapter = Adapter(contents.source, modules, base_model, extras=extras, notes=self._notes())
        return _described(adapter, self.config)

    def _notes(self) -> tuple[str, ...]:
        if not self.wrappers:
            return ()
        names = ", ".join(sorted(self.wrappers))
        return (f"left out of the names of its modules, as training put it there: {names}",)

    def _check_whole(self) -> None:
        if not self.parts:
            raise self._error("holds no LoRA factors")
        if len(self.infixes) > 1:
            names = sorted(self.infixes)
            raise self._error(f"holds several adapters, {names}; save each in its own file")

    def _check_saved(self) -> None:
        """Raise GamMergeError if a module that was trained whole is not in the file.

        The heads of a task are alternatives: a model has one of them. Of tied weights PEFT saves
        one end.
        """
        if self.config.get("ensure_weight_tying"):
            return
        named = peft_config.strings(self.where, self.config, "modules_to_save")
        heads = [name for name in named if name in peft_config.heads(self.config)]
        absent = [name for name in named if name not in heads and not self._holds(name)]
        if heads and not any(map(self._holds, heads)):
            absent.append(" or ".join(heads))
        if absent:
            raise self._error(
                f"modules_to_save names {absent[0]}, but the file does not hold it: what was "
                "trained there is lost; save the adapter again, or take the name out of the config"
            )

    def _holds(self, module: str) -> bool:
        """Tell whether a module of modules_to_save is there."""
        kept = [extra.name for extra in self.extras.values() if extra.kind != "base_weight"]
        return any(f"{module}." in name for name in kept)

    def _sort_in(self, key: str, tensor: LazyTensor) -> None:
        """Put a tensor where its key says."""
        if len(key) > peft_config.MAX_NAME:
            start = f"{key[:100]}..."
            raise self._error(f"the name of a tensor has {len(key)} characters: {start}")
        if 0 in tensor.shape:
            raise self._error(
                f"tensor {key} is empty, {tensor.shape}: it was not gathered before it was saved "
                "(under DeepSpeed ZeRO-3 set stage3_gather_16bit_weights_on_model_save); save the "
                "adapter again"
            )
        bare, wrappers = unwrapped(key)
        self.wrappers |= wrappers
        match = _LORA.fullmatch(bare)
        part = _PARTS.get((match["part"], match["suffix"])) if match else None
        if match and part:
            self._check_dtype(key, tensor)
            parts = self.parts.setdefault(match["module"], {})
            if part in parts:
                raise self._twice(key)
            parts[part] = tensor
            self.infixes.add(match["infix"] or "default")
            return
        extra = self._extra(key, bare, tensor)
        self._check_dtype(key, tensor, counter=extra.kind == "modules_to_save")
        if extra.name not in self.extras:
            self.extras[extra.name] = extra
        elif _SAVED_TWICE not in bare:
            raise self._twice(key)

    def _check_dtype(self, key: str, tensor: LazyTensor, *, counter: bool = False) -> None:
        """Raise GamMergeError unless a tensor holds floats, or a batch norm's count of batches."""
        dtype = tensor.dtype
        if (dtype.is_floating_point and dtype.itemsize > 1) or (counter and dtype in _INTEGERS):
            return
        raise self._error(
            f"tensor {key} is stored as {dtype_name(dtype)}; convert it to F32, F16 or BF16"
        )

    def _extra(self, key: str, bare: str, tensor: LazyTensor) -> Extra:
        """Return what a tensor is that is not a factor. Raises GamMergeError if nothing fits."""
        if match := _TOKENS.fullmatch(bare):
            return Extra(match[1], "trainable_tokens", tensor)
        if _BASE.fullmatch(bare):
            return Extra(bare, "base_weight", tensor)
        bare = re.sub(r"\.modules_to_save\.[^.]+\.", ".", bare)
        for name in peft_config.saved_modules(self.where, self.config):
            if f"{name}." in bare:  # as PEFT does: the name of a module that ends like this
                return Extra(bare, "modules_to_save", tensor)
        module, _, parameter = bare.rpartition(".")
        if parameter == "bias" and self.config.get("bias", "none") != "none":
            return Extra(f"{module.removesuffix('.base_layer')}.bias", "bias", tensor)
        if parameter == "weight" and module.rpartition(".")[2] in _EMBEDDINGS:
            return Extra(bare, "embedding", tensor)
        raise self._error(
            f"tensor {key} is not part of a LoRA that can be merged; leave this adapter out"
        )

    def _modules(self) -> dict[str, LoraModule]:
        """Return the modules whose parts are all there."""
        modules: dict[str, LoraModule] = {}
        numbers = peft_config.RanksAndScales(self.where, self.config)
        for name, parts in sorted(self.parts.items()):
            with collecting(self.problems):
                module = self._module(numbers, name, parts)
                modules[name] = module
                if "bias" in parts:
                    bias = Extra(f"{name}.lora_B.bias", "lora_bias", parts["bias"], module.scale)
                    self.extras[bias.name] = bias
        return modules

    def _module(
        self, numbers: peft_config.RanksAndScales, name: str, parts: Mapping[str, LazyTensor]
    ) -> LoraModule:
        embedding = "embedding_A" in parts or "embedding_B" in parts
        stem = "embedding_" if embedding else ""
        a, b = parts.get(f"{stem}A"), parts.get(f"{stem}B")
        if a is None or b is None:
            letter = "A" if a is None else "B"
            raise self._error(f"module {name} has no lora_{stem}{letter}; the file is incomplete")
        parameters = self._parameters(name)
        known = peft_config.pattern_keys(name, _own_parameters(name, parameters))
        rank = self._shared(name, "ranks", known, {numbers.rank(entry) for entry in known})
        layout = _layout(a.shape, b.shape, rank, parameters, embedding=embedding)
        if layout is None:
            raise self._error(
                f"module {name} has A {a.shape} and B {b.shape}, not (r, in) and (out, r)"
            )
        scales = {numbers.scale(entry, rank or a.shape[0]) for entry in known}
        scale = self._shared(name, "alphas", known, scales)
        wrapper = peft_config.owner(name)
        module = LoraModule(
            name=name,
            a=a,
            b=b,
            scale=scale,
            layout=layout,
            magnitude=parts.get("magnitude"),
            wrapper=None if wrapper == name else wrapper,
        )
        if rank is not None and rank != module.rank:
            raise self._error(
                f"module {name} has rank {module.rank} by its tensors and {rank} by its config; "
                "correct r or rank_pattern there (PEFT sorts patterns on saving, so that another "
                "may come first)"
            )
        self._check_magnitude(module)
        return module

    def _shared(self, name: str, what: str, known: Sequence[str], values: set[Any]) -> Any:
        """Return the one value that all adapted parameters of a module share."""
        if len(values) > 1:
            raise self._error(
                f"{name} adapts {known} at different {what}, and its keys do not say which"
            )
        return values.pop()

    def _parameters(self, name: str) -> tuple[str, ...]:
        """Return the parameters of a module that the config targets by name, sorted."""
        owner = peft_config.owner(name)
        parameters: set[str] = set()
        # PEFT's conversion of an adapter from transformers 4 names parameters without a module.
        for target in peft_config.strings(self.where, self.config, "target_parameters"):
            parent, _, parameter = target.rpartition(".")
            if f".{owner}".endswith(f".{parent or 'experts'}"):
                parameters.add(parameter)
        return tuple(sorted(parameters))

    def _check_magnitude(self, module: LoraModule) -> None:
        """Raise GamMergeError unless DoRA has one per row, and a plain LoRA none."""
        dora, magnitude = self.config.get("use_dora"), module.magnitude
        subject = f"module {module.name}"
        if magnitude is None:
            if dora:
                raise self._error(f"{subject} has no lora_magnitude_vector; the file is incomplete")
            return
        if dora is False:
            raise self._error(f"{subject} has a lora_magnitude_vector, but use_dora is false")
        rows = module.shape[0]
        if magnitude.shape != module.layout.magnitude_shape(rows):
            raise self._error(
                f"{subject} has {rows} rows and a lora_magnitude_vector {magnitude.shape}"
            )

    def _twice(self, key: str) -> GamMergeError:
        return self._error(f"holds tensor {key} twice, with and without a prefix or adapter name")

    def _error(self, text: str) -> GamMergeError:
        return GamMergeError(f"{self.where}: {text}")


def _own_parameters(name: str, parameters: tuple[str, ...]) -> tuple[str, ...]:
    """Return the parameters that a module may be: one where the order of wrapping is known."""
    if set(parameters) != set(_EXPERTS):
        return parameters
    inner, outer = _EXPERTS
    return (inner,) if name.endswith(".base_layer") else (outer,)


def _layout(
    a: tuple[int, ...],
    b: tuple[int, ...],
    rank: int | None,
    parameters: tuple[str, ...],
    *,
    embedding: bool,
) -> Layout | None:
    """Return the layout of factors of these shapes, None if there is none."""
    if len(a) != len(b) or len(a) < 2 or 0 in (*a, *b) or b[2:] != (1,) * (len(b) - 2):
        return None
    if len(a) > 2:
        groups, remainder = divmod(a[0], b[1])
        uneven = remainder or not groups or b[0] % groups
        return None if uneven else ConvLayout(a[2:], groups)
    if a[0] != b[1]:
        return None
    if parameters:
        if rank and a[0] % rank == 0:
            return ExpertsLayout(a[0] // rank, parameters)
        return None
    return EmbeddingLayout() if embedding else Layout()
