"""PEFT's adapter directory: adapter_config.json and adapter_model.safetensors.

Keys are ``base_model.model.<module>.`` and then

lora_A.weight, lora_B.weight          factors (r, in), (out, r); of a convolution (r, in, *kernel), (out, r, 1, ...)
lora_embedding_A, lora_embedding_B    factors (r, vocabulary), (dim, r)
lora_magnitude_vector                 norms of the rows (out,) of DoRA; of a convolution (1, out, 1, ...)
lora_B.bias                           what lora_bias adds to the bias of the base, before the scale
bias, base_layer.bias                 biases trained with bias="all" or "lora_only"
token_adapter.trainable_tokens_delta  new embeddings of some tokens
anything                              parameters of a module of modules_to_save, whole

The prefix may be missing, and the name of the adapter may stand behind ``lora_A``, as in the state of a model. What
is none of these is refused by name: nothing in the file is passed over in silence.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from gam_merge._common.errors import GamMergeError, collecting
from gam_merge._common.tensors import LazyTensor
from gam_merge._read import peft_config as fields
from gam_merge._read.adapter import Adapter, Extra, ExtraKind, LoraModule
from gam_merge._read.layout import ConvLayout, EmbeddingLayout, ExpertsLayout, Layout
from gam_merge._read.peft_config import merged_config as merged_config
from gam_merge._read.peft_config import owner as owner

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
PREFIX = "base_model.model."

_LORA = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(?:\.(?P<infix>[^.]+))??(?P<suffix>\.weight|\.bias)?"
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
_SAVED_TWICE = (
    ".modules_to_save."  # with bias="all" PEFT saves the biases of such modules under both names
)
# PEFT saves embeddings whole when the vocabulary has grown, or a tied one is trained.
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "shared", "word_embeddings")


@dataclass
class _Parts:
    """The tensors of a file, sorted."""

    modules: dict[str, dict[str, LazyTensor]] = field(
        default_factory=dict[str, dict[str, LazyTensor]]
    )
    extras: dict[str, Extra] = field(default_factory=dict[str, Extra])
    infixes: set[str] = field(default_factory=set[str])


def parse_adapter(
    source: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, LazyTensor],
    *,
    path: str | None = None,
    problems: list[str] | None = None,
) -> Adapter:
    """An adapter from PEFT's config and tensors; ``source`` names it in errors.

    Raises GamMergeError for the first thing that cannot be merged; with ``problems`` it is added there instead, and
    the adapter is what the rest of the file holds.
    """
    where = path or source
    for check in fields.CHECKS:
        with collecting(problems):
            check(where, config)
    parts = _Parts()
    for key, tensor in sorted(tensors.items(), key=lambda item: _SAVED_TWICE in item[0]):
        with collecting(problems):
            _sort_in(where, config, parts, key, tensor)
    modules, numbers = dict[str, LoraModule](), fields.Numbers(where, config)
    for name, found in sorted(parts.modules.items()):
        with collecting(problems):
            modules[name] = module = _module(where, config, numbers, name, found)
            if "bias" in found:
                bias = Extra(f"{name}.lora_B.bias", "lora_bias", found["bias"], module.scale)
                parts.extras[bias.name] = bias
    with collecting(problems):
        if not parts.modules:
            raise GamMergeError(f"{where}: holds no LoRA factors")
        if len(parts.infixes) > 1:
            raise GamMergeError(
                f"{where}: holds several adapters, {sorted(parts.infixes)}; save each in its own file"
            )
    extras = dict(sorted(parts.extras.items()))
    return Adapter(source, modules, config.get("base_model_name_or_path"), dict(config), extras)


def _sort_in(
    where: str, config: Mapping[str, Any], parts: _Parts, key: str, tensor: LazyTensor
) -> None:
    """Put a tensor where its key says."""
    if len(key) > fields.MAX_NAME:
        raise GamMergeError(
            f"{where}: the name of a tensor has {len(key)} characters: {key[:100]}..."
        )
    bare = key.removeprefix(PREFIX)
    if match := _LORA.fullmatch(bare):
        part = _PARTS.get((match["part"], match["suffix"]))
        if part is not None:
            found = parts.modules.setdefault(match["module"], {})
            if part in found:
                raise GamMergeError(
                    f"{where}: holds tensor {key} twice, with and without a prefix or adapter name"
                )
            found[part] = tensor
            parts.infixes.add(match["infix"] or "default")
            return
    extra = _extra(where, config, key, bare, tensor)
    if extra.name not in parts.extras:
        parts.extras[extra.name] = extra
    elif _SAVED_TWICE not in bare:
        raise GamMergeError(
            f"{where}: holds tensor {key} twice, with and without a prefix or adapter name"
        )


def _extra(where: str, config: Mapping[str, Any], key: str, bare: str, tensor: LazyTensor) -> Extra:
    if match := _TOKENS.fullmatch(bare):
        return Extra(match[1], "trainable_tokens", tensor)
    if _BASE.fullmatch(bare):
        return Extra(bare, "base_weight", tensor)
    bare = re.sub(r"\.modules_to_save\.[^.]+\.", ".", bare)
    for entry in fields.strings(where, config, "modules_to_save"):
        if f"{entry}." in bare:  # as PEFT does: the name of a module that ends like this
            return Extra(bare, "modules_to_save", tensor)
    module, _, parameter = bare.rpartition(".")
    if parameter == "bias" and config.get("bias", "none") != "none":
        return Extra(f"{module.removesuffix('.base_layer')}.bias", "bias", tensor)
    if parameter == "weight" and module.rpartition(".")[2] in _EMBEDDINGS:
        return Extra(bare, "embedding", tensor)
    raise GamMergeError(
        f"{where}: tensor {key} is no part of a LoRA that can be merged; leave this adapter out"
    )


def _module(
    where: str,
    config: Mapping[str, Any],
    numbers: fields.Numbers,
    name: str,
    found: Mapping[str, LazyTensor],
) -> LoraModule:
    stem = "lora_embedding_" if "embedding_A" in found or "embedding_B" in found else "lora_"
    pair = [found.get(stem.removeprefix("lora_") + letter) for letter in "AB"]
    a, b = pair
    if a is None or b is None:
        missing = "A" if a is None else "B"
        raise GamMergeError(f"{where}: module {name} has no {stem}{missing}; the file is not whole")
    parameters = _parameters(where, config, name)
    known = {
        parameter: numbers.rank(parameter) for parameter in fields.config_names(name, parameters)
    }
    if len(set(known.values())) > 1:
        raise GamMergeError(
            f"{where}: {name} adapts {list(known)} at different ranks, and its keys do not say which"
        )
    rank = next(iter(known.values()))
    layout = _layout(a.shape, b.shape, rank, parameters, embedding=stem == "lora_embedding_")
    if layout is None:
        raise GamMergeError(
            f"{where}: module {name} has A {a.shape} and B {b.shape}, not (r, in) and (out, r)"
        )
    scales = {numbers.scale(parameter, rank or a.shape[0]) for parameter in known}
    if len(scales) > 1:
        raise GamMergeError(
            f"{where}: {name} adapts {list(known)} at different alphas, and its keys do not say which"
        )
    module = LoraModule(name, a, b, scales.pop(), layout, found.get("magnitude"))
    if rank is not None and rank != module.rank:
        raise GamMergeError(
            f"{where}: module {name} has rank {module.rank} by its tensors and {rank} by its config; correct r or "
            "rank_pattern there (PEFT sorts patterns on saving, so that another may come first)"
        )
    _check_magnitude(where, config, module)
    return module


def _check_magnitude(where: str, config: Mapping[str, Any], module: LoraModule) -> None:
    """A DoRA has one for each row of each module; what is no DoRA has none."""
    dora, found = config.get("use_dora"), module.magnitude
    if found is None and dora:
        raise GamMergeError(
            f"{where}: module {module.name} has no lora_magnitude_vector; the file is not whole"
        )
    if found is not None and dora is False:
        raise GamMergeError(
            f"{where}: module {module.name} has a lora_magnitude_vector, but use_dora is false"
        )
    if found is not None and found.shape != module.layout.magnitude_shape(module.shape[0]):
        raise GamMergeError(
            f"{where}: module {module.name} has {module.shape[0]} rows and a lora_magnitude_vector {found.shape}"
        )


def _layout(
    a: tuple[int, ...],
    b: tuple[int, ...],
    rank: int | None,
    parameters: tuple[str, ...],
    *,
    embedding: bool,
) -> Layout | None:
    """The layout of factors of these shapes, None if there is none."""
    if len(a) != len(b) or len(a) < 2 or 0 in (*a, *b) or b[2:] != (1,) * (len(b) - 2):
        return None
    if len(a) > 2:
        groups, uneven = divmod(a[0], b[1])
        return None if uneven or not groups or b[0] % groups else ConvLayout(a[2:], groups)
    if a[0] != b[1]:
        return None
    if parameters:
        return ExpertsLayout(a[0] // rank, parameters) if rank and a[0] % rank == 0 else None
    return EmbeddingLayout() if embedding else Layout()


def _parameters(where: str, config: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The parameters of a module that the config targets by name (target_parameters), sorted."""
    owner = fields.owner(name)
    split = [
        target.rpartition(".") for target in fields.strings(where, config, "target_parameters")
    ]
    return tuple(
        sorted({parameter for parent, _, parameter in split if f".{owner}".endswith(f".{parent}")})
    )


def config_names(weights: PurePath) -> tuple[str, ...]:
    """The names beside a bare file of weights under which its config is looked for, in that order."""
    return f"{weights.stem}.json", f"{weights.stem}_config.json", CONFIG_NAME


def factor_keys(module: str, layout: Layout) -> tuple[str, str]:
    """The keys of A and B of a module in a written adapter."""
    if isinstance(layout, EmbeddingLayout):
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def adapter_tensors(adapter: Adapter) -> dict[str, LazyTensor]:
    """All tensors of an adapter, by the keys under which it is written."""
    tensors: dict[str, LazyTensor] = {}
    for name, module in adapter.modules.items():
        key_a, key_b = factor_keys(name, module.layout)
        tensors[key_a], tensors[key_b] = module.a, module.b
        if module.magnitude is not None:
            tensors[magnitude_key(name)] = module.magnitude
    for name, extra in adapter.extras.items():
        tensors[extra_key(name, extra.kind, adapter.modules)] = extra.tensor
    return tensors


def magnitude_key(module: str) -> str:
    """The key of the magnitudes of a DoRA module in a written adapter."""
    return f"{PREFIX}{module}.lora_magnitude_vector"


def extra_key(name: str, kind: ExtraKind, modules: Iterable[str]) -> str:
    """The key of an extra in a written adapter that has factors for these modules."""
    module = name.removesuffix(".bias")
    return (
        f"{PREFIX}{module}.base_layer.bias"
        if kind == "bias" and module in modules
        else f"{PREFIX}{name}"
    )
