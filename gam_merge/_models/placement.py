"""Where each tensor of an adapter goes in the files of its base model."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import FileTensor
from gam_merge._models.checkpoint import Model, common_prefix, is_conv1d, rename
from gam_merge._models.edit import AddDelta, AddExtra, Edit, Replace
from gam_merge._read.adapter import Adapter, Extra, LoraModule
from gam_merge._read.layout import ConvLayout, EmbeddingLayout, ExpertsLayout
from gam_merge._read.weight import BaseWeight

_HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "shared")
_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_TRANSPOSED_EXPERTS = {"gpt_oss", "llama4", "llama4_text"}  # keep experts as (experts, in, out)


@dataclass(frozen=True)
class Placement:
    """What becomes of the tensors of the base, by key; the others stay as they are.

    ``copies`` are tensors to be added, by key: each starts as a copy of that of the key that it names.
    """

    edits: dict[str, list[Edit]] = field(default_factory=lambda: defaultdict(list))
    copies: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])


def place(model: Model, adapter: Adapter) -> Placement:
    """Raises GamMergeError if a tensor of the adapter has no place, or one of another shape."""
    found, base = Placement(), _Base(model, adapter)
    for module in adapter.modules.values():
        key, delta = _place_module(base, module)
        found.edits[key].append(delta)
    for extra in adapter.extras.values():
        if extra.kind == "base_weight":
            found.notes.append(f"left out, as it belongs to the base model: {extra.name}")
            continue
        key, edit = _place_extra(base, extra)
        found.edits[key].append(edit)
    if base.tied:
        _settle_tied(base, found)
    return found


def base_weights(model: Model, adapter: Adapter) -> dict[str, BaseWeight]:
    """The weight of each module of an adapter. Raises GamMergeError if one is not there, or has another shape."""
    base, found = _Base(model, adapter), dict[str, BaseWeight]()
    for name, module in adapter.modules.items():
        key, edit = _place_module(base, module)
        tensor = model.tensors[key if key in model.tensors else base.embedding()]
        found[name] = BaseWeight(tensor, edit.transposed)
    return found


class _Base:
    """The parameters of a model by the names that the adapter has for them."""

    def __init__(self, model: Model, adapter: Adapter) -> None:
        self.model, self.adapter = model, adapter
        self.tied = _HEAD not in model.tensors and _is_tied(model.config)
        modules = [
            m for m in adapter.modules.values() if not (self.tied and _parameters(m)[0] == _HEAD)
        ]
        self.prefix = common_prefix(model, map(_parameters, modules)) if modules else (0, "")

    def find(self, parameter: str) -> tuple[str, FileTensor] | None:
        """Its key and its tensor: a tied head is still that of the embedding. Raises GamMergeError if quantised."""
        key = rename(parameter, *self.prefix)
        place = self.embedding() if self.tied and parameter == _HEAD else key
        tensor = self.model.tensors.get(place)
        if tensor is not None and not tensor.is_plain:
            raise GamMergeError(
                f"{tensor.path}: {key} is {tensor}; name a base model that is not quantised"
            )
        return None if tensor is None else (key, tensor)

    def embedding(self) -> str:
        """The key of the embedding that the head is tied to."""
        keys = [
            key
            for key in self.model.tensors
            if key.split(".")[-2:-1] and key.split(".")[-2] in _EMBEDDINGS
        ]
        if len(keys) != 1:
            raise GamMergeError(
                f"{self.model.place}: {_HEAD} is tied to one of {keys}, which is not clear"
            )
        return keys[0]

    def misfit(self, name: str, shape: Sequence[int], tensor: FileTensor | None) -> GamMergeError:
        found = "is missing" if tensor is None else f"is {tensor.shape}"
        return GamMergeError(
            f"{name} is {tuple(shape)} in {self.adapter.source} and {found} in {self.model.place}; "
            "the adapter is of another base model"
        )


def _is_tied(config: Mapping[str, Any]) -> bool:
    """Whether a model without a head of its own uses its embedding as one. It does if its config does not say."""
    with_head = any(str(name).endswith(_WITH_HEAD) for name in config.get("architectures") or ())
    return with_head and config.get("tie_word_embeddings") in (True, None)


def _parameters(module: LoraModule) -> list[str]:
    """What the parameter of a module may be called: keys of PEFT name neither parameters nor what it wraps."""
    if isinstance(module.layout, ExpertsLayout):
        return [f"{module.owner}.{parameter}" for parameter in module.layout.parameters]
    name = module.name.replace(".base_layer", "")
    return [f"{name}.weight", f"{name}.in_proj_weight"]  # the second in torch's MultiheadAttention


def _place_module(base: _Base, module: LoraModule) -> tuple[str, AddDelta]:
    layout, tensor = module.layout, None
    if isinstance(layout, ConvLayout) and layout.groups > 1:
        raise GamMergeError(
            f"{module.name} is a grouped convolution, whose delta is larger than its weight"
        )
    if module.name.endswith(".base_layer.out_proj"):
        raise GamMergeError(
            f"{module.name} is in a MultiheadAttention, where PEFT (0.21) adds the delta twice; "
            "fuse it with merge_and_unload of the PEFT that it was trained with"
        )
    for key, tensor in filter(None, map(base.find, _parameters(module))):
        shape = (
            (tensor.shape[0], prod(tensor.shape[1:]))
            if isinstance(layout, ConvLayout)
            else tensor.shape
        )
        fitting = [transposed for expected, transposed in _shapes(module) if expected == shape]
        if fitting:
            return key, AddDelta(
                module, fitting[0] if len(fitting) == 1 else _is_transposed(base, module)
            )
    raise base.misfit(f"module {module.name}", module.shape, tensor)


def _shapes(module: LoraModule) -> list[tuple[tuple[int, ...], bool]]:
    """Those that its weight may have, and whether it is then transposed."""
    m, n = module.shape
    match module.layout:
        case EmbeddingLayout():
            return [((n, m), True)]
        case ExpertsLayout(count=1):
            return [((m, n), False)]
        case ExpertsLayout(count=count):
            return [((count, m, n), False), ((count, n, m), True)]
        case ConvLayout():
            return [((m, n), False)]
    return [((m, n), False), ((n, m), True)]


def _is_transposed(base: _Base, module: LoraModule) -> bool:
    """Of a square weight, whose shape does not tell. PEFT keeps in fan_in_fan_out what held for the layer that it saw
    last: models of Conv1D are known by their config instead."""
    model = base.model.config.get("model_type")
    if isinstance(module.layout, ExpertsLayout):
        return model in _TRANSPOSED_EXPERTS
    if model is None:
        return base.adapter.transposed
    return is_conv1d(base.model, module.name)


def _place_extra(base: _Base, extra: Extra) -> tuple[str, Edit]:
    edit: Edit = Replace(extra)
    parameter, shape, rows = extra.name, extra.tensor.shape, None
    if extra.kind == "lora_bias":
        parameter, edit = (
            extra.name.replace(".lora_B.bias", ".bias").replace(".base_layer", ""),
            AddExtra(extra),
        )
    elif extra.kind == "trainable_tokens":
        module = extra.name.rpartition(".token_adapter.")[0]
        parameter, rows = f"{module}.weight", _token_rows(base.adapter, module)
        edit = Replace(extra, rows)
    found = base.find(parameter)
    if found is None:
        raise base.misfit(f"tensor {parameter}", shape, None)
    key, tensor = found
    expected = tensor.shape if rows is None else (len(rows), *tensor.shape[1:])
    if shape != expected or max(rows or [0]) >= tensor.shape[0]:
        raise base.misfit(f"tensor {parameter}", shape, tensor)
    return key, edit


def _token_rows(adapter: Adapter, module: str) -> tuple[int, ...]:
    """Return the tokens that an adapter trained in an embedding. Raises GamMergeError."""
    for name, rows in adapter.tokens.items():
        if not name or f".{module}".endswith(f".{name}"):
            return rows
    raise GamMergeError(
        f"{adapter.source}: trainable_token_indices does not say which tokens of {module} it holds"
    )


def _settle_tied(base: _Base, found: Placement) -> None:
    """The model keeps one tensor for embedding and head. They part if the adapter changes one of them alone."""
    embedding = base.embedding() if found.edits else _HEAD
    changes = [*found.edits.get(embedding, ()), *found.edits.get(_HEAD, ())]
    tokens = all(isinstance(edit, Replace) and edit.rows is not None for edit in changes)
    if tokens or base.adapter.ties_weights:
        found.edits.pop(_HEAD, None)  # PEFT lets the head follow
    elif base.model.config.get("is_encoder_decoder") or base.prefix != (0, ""):
        raise GamMergeError(
            f"{base.adapter.source} changes embeddings that {base.model.place} ties to others; this cannot be fused"
        )
    else:
        found.copies[_HEAD] = embedding
        found.notes.append(f"{_HEAD} and {embedding} were one tensor, and are two now")
