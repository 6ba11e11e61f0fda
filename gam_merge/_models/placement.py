"""Where each tensor of an adapter belongs in the files of its base model."""

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
    """The changes to the tensors of the base, by key; all other tensors stay as they are.

    ``copies`` are tensors to add: the key of each, and the key of the tensor that it is a copy of
    before its edits.
    """

    edits: dict[str, list[Edit]] = field(default_factory=lambda: defaultdict(list))
    copies: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])


def place(model: Model, adapter: Adapter) -> Placement:
    """Find the place of every tensor of an adapter.

    Raises GamMergeError if the model lacks one of them, or has it in another shape.
    """
    placement, base = Placement(), _Base(model, adapter)
    for module in adapter.modules.values():
        key, delta = _place_module(base, module)
        placement.edits[key].append(delta)
    for extra in adapter.extras.values():
        if extra.kind == "base_weight":
            placement.notes.append(f"left out, as it belongs to the base model: {extra.name}")
            continue
        key, edit = _place_extra(base, extra)
        placement.edits[key].append(edit)
    if base.tied:
        _settle_tied(base, placement)
    return placement


def base_weights(model: Model, adapter: Adapter) -> dict[str, BaseWeight]:
    """Find the weight of each module of an adapter.

    Raises GamMergeError if the model lacks one of them, or has it in another shape.
    """
    base, weights = _Base(model, adapter), dict[str, BaseWeight]()
    for name, module in adapter.modules.items():
        key, edit = _place_module(base, module)
        tensor = model.tensors[key if key in model.tensors else base.embedding()]
        weights[name] = BaseWeight(tensor, edit.transposed)
    return weights


class _Base:
    """The parameters of a model, by the names that the adapter uses for them."""

    def __init__(self, model: Model, adapter: Adapter) -> None:
        self.model, self.adapter = model, adapter
        self.tied = _HEAD not in model.tensors and _is_tied(model.config)
        parameters = [_parameters(module) for module in adapter.modules.values()]
        stored = [names for names in parameters if not (self.tied and names[0] == _HEAD)]
        self.prefix = common_prefix(model, stored) if stored else (0, "")

    def find(self, parameter: str) -> tuple[str, FileTensor] | None:
        """Find the key and the tensor of a parameter; a tied head has the tensor of the embedding.

        Raises GamMergeError if it is quantised.
        """
        key = rename(parameter, *self.prefix)
        place = self.embedding() if self.tied and parameter == _HEAD else key
        tensor = self.model.tensors.get(place)
        if tensor is None:
            return None
        if not tensor.is_plain:
            raise GamMergeError(
                f"{tensor.path}: {key} is {tensor}; name a base model that is not quantised"
            )
        return key, tensor

    def embedding(self) -> str:
        """Find the key of the embedding that the head is tied to."""
        keys = [key for key in self.model.tensors if _module_of(key) in _EMBEDDINGS]
        if len(keys) != 1:
            raise GamMergeError(
                f"{self.model.place}: {_HEAD} is tied to an embedding, which must be one tensor, "
                f"got {keys}"
            )
        return keys[0]

    def misfit(self, name: str, shape: Sequence[int], tensor: FileTensor | None) -> GamMergeError:
        """Return the error for a tensor that the model lacks, or has in another shape."""
        stored = "is missing" if tensor is None else f"is {tensor.shape}"
        return GamMergeError(
            f"{name} is {tuple(shape)} in {self.adapter.source} and {stored} in "
            f"{self.model.place}; the adapter belongs to another base model"
        )


def _module_of(key: str) -> str:
    """Return the last part of the name of the module that has a parameter, "" if it has none."""
    return key.rpartition(".")[0].rpartition(".")[2]


def _is_tied(config: Mapping[str, Any]) -> bool:
    """Tell whether a model that stores no head uses its embedding instead.

    It does unless its config says otherwise.
    """
    with_head = any(str(name).endswith(_WITH_HEAD) for name in config.get("architectures") or ())
    return with_head and config.get("tie_word_embeddings") in (True, None)


def _parameters(module: LoraModule) -> list[str]:
    """List the names that the parameter of a module may have.

    Keys of PEFT name neither parameters nor the modules that it wraps.
    """
    if isinstance(module.layout, ExpertsLayout):
        return [f"{module.owner}.{parameter}" for parameter in module.layout.parameters]
    name = module.name.replace(".base_layer", "")
    return [f"{name}.weight", f"{name}.in_proj_weight"]  # the second in torch's MultiheadAttention


def _place_module(base: _Base, module: LoraModule) -> tuple[str, AddDelta]:
    """Find the key of the weight of a module. Raises GamMergeError."""
    _check_can_add(module)
    tensor = None
    for key, tensor in filter(None, map(base.find, _parameters(module))):
        shape = tensor.shape
        if isinstance(module.layout, ConvLayout):
            shape = (shape[0], prod(shape[1:]))
        fitting = [transposed for expected, transposed in _shapes(module) if expected == shape]
        if len(fitting) == 1:
            return key, AddDelta(base.adapter.source, module, fitting[0])
        if fitting:
            return key, AddDelta(base.adapter.source, module, _is_transposed(base, module))
    raise base.misfit(f"module {module.name}", module.shape, tensor)


def _check_can_add(module: LoraModule) -> None:
    """Raise GamMergeError for a module whose delta is not simply added to its weight."""
    if isinstance(module.layout, ConvLayout) and module.layout.groups > 1:
        raise GamMergeError(
            f"{module.name} is a grouped convolution, whose delta is larger than its weight"
        )
    if module.name.endswith(".base_layer.out_proj"):
        raise GamMergeError(
            f"{module.name} is in a MultiheadAttention, where PEFT (0.21) adds the delta twice; "
            "fuse it with merge_and_unload of the PEFT version that trained it"
        )


def _shapes(module: LoraModule) -> list[tuple[tuple[int, ...], bool]]:
    """List the shapes that the weight may have, and whether it is transposed then."""
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
    """Tell whether a square weight, whose shape does not show it, is kept as (in, out).

    fan_in_fan_out holds only for the layer that PEFT saw last, so models of Conv1D are recognised
    by their config instead.
    """
    model = base.model.config.get("model_type")
    if isinstance(module.layout, ExpertsLayout):
        return model in _TRANSPOSED_EXPERTS
    if model is None:
        return base.adapter.transposed
    return is_conv1d(base.model, module.name)


def _place_extra(base: _Base, extra: Extra) -> tuple[str, Edit]:
    """Find the key of the tensor that an extra changes. Raises GamMergeError."""
    match extra.kind:
        case "lora_bias":
            name = extra.name.replace(".lora_B.bias", ".bias").replace(".base_layer", "")
            key, _ = _fitting(base, name, extra)
            return key, AddExtra(base.adapter.source, extra)
        case "trainable_tokens":
            return _place_tokens(base, extra)
        case _:
            key, _ = _fitting(base, extra.name, extra)
            return key, Replace(base.adapter.source, extra)


def _place_tokens(base: _Base, extra: Extra) -> tuple[str, Edit]:
    """Find the key of the embedding whose rows an extra replaces. Raises GamMergeError."""
    module = extra.name.rpartition(".token_adapter.")[0]
    rows = _token_rows(base.adapter, module)
    key, tensor = _fitting(base, f"{module}.weight", extra, rows)
    if max(rows, default=0) >= tensor.shape[0]:
        raise base.misfit(f"tensor {module}.weight", extra.tensor.shape, tensor)
    return key, Replace(base.adapter.source, extra, rows)


def _fitting(
    base: _Base, parameter: str, extra: Extra, rows: Sequence[int] | None = None
) -> tuple[str, FileTensor]:
    """Find a parameter of the shape of an extra, or with rows of it. Raises GamMergeError."""
    stored = base.find(parameter)
    if stored is None:
        raise base.misfit(f"tensor {parameter}", extra.tensor.shape, None)
    key, tensor = stored
    expected = tensor.shape if rows is None else (len(rows), *tensor.shape[1:])
    if extra.tensor.shape != expected:
        raise base.misfit(f"tensor {parameter}", extra.tensor.shape, tensor)
    return key, tensor


def _token_rows(adapter: Adapter, module: str) -> tuple[int, ...]:
    """Return the tokens that an adapter trained in an embedding. Raises GamMergeError."""
    for name, rows in adapter.tokens.items():
        if not name or f".{module}".endswith(f".{name}"):
            return rows
    raise GamMergeError(
        f"{adapter.source}: trainable_token_indices does not say which tokens of {module} it holds"
    )


def _settle_tied(base: _Base, placement: Placement) -> None:
    """Split embedding and head, stored as one tensor, if the adapter changes only one of them."""
    embedding = base.embedding() if placement.edits else _HEAD
    changes = [*placement.edits.get(embedding, ()), *placement.edits.get(_HEAD, ())]
    tokens = all(isinstance(edit, Replace) and edit.rows is not None for edit in changes)
    if tokens or base.adapter.ties_weights:
        placement.edits.pop(_HEAD, None)  # PEFT lets the head follow
    elif base.model.config.get("is_encoder_decoder") or base.prefix != (0, ""):
        raise GamMergeError(
            f"{base.adapter.source} changes embeddings that {base.model.place} ties to others; "
            "this cannot be fused"
        )
    else:
        placement.copies[_HEAD] = embedding
        placement.notes.append(f"{_HEAD} and {embedding} were one tensor and are now two")
