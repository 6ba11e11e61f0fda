"""Merges of the adapters of a live ``PeftModel``, in its memory: only factors are read, so any base will do.

from gam_merge.integrations.peft import add_merged_adapter
add_merged_adapter(model, ["math", "code"], "both", method="gam", weights=[0.6, 0.4])
model.set_adapter("both")
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import Embedding, LoraLayer

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import MemoryTensor
from gam_merge._merge import MergeResult, merge
from gam_merge._read.adapter import Adapter
from gam_merge._read.weight import BaseWeight
from gam_merge._run.report import MergeReport
from gam_merge._state_dict import from_state_dict, state_dict

_HALF = (torch.float16, torch.bfloat16)


def from_model(model: PeftModel, adapter_name: str = "default") -> Adapter:
    """One adapter of a model, as a source of merges: it shares the model's tensors and is read when a merge runs.

    Raises GamMergeError if the model has no such adapter, or it cannot be merged.
    """
    if not isinstance(model, PeftModel):
        raise GamMergeError(
            f"the model is a {type(model).__name__}, not a PeftModel; wrap it with get_peft_model"
        )
    if adapter_name not in model.peft_config:
        raise GamMergeError(
            f"the model has no adapter {adapter_name!r}; it has: {', '.join(model.peft_config)}"
        )
    config = model.peft_config[adapter_name]
    # All adapters of the model share its embeddings: PEFT need not find out whether they have grown.
    tensors = get_peft_model_state_dict(
        model, adapter_name=adapter_name, save_embedding_layers=False
    )
    return from_state_dict(tensors, config, name=adapter_name)


def merge_adapters(model: PeftModel, adapters: Sequence[str], **options: Any) -> Adapter:
    """Merge adapters of a model into one outside of it: the model is left as it is.

    ``options`` are those of ``gam_merge.merge``; ``anchor`` may name an adapter. Raises GamMergeError.
    """
    return _merge(model, adapters, options).adapter


def add_merged_adapter(
    model: PeftModel,
    adapters: Sequence[str],
    adapter_name: str,
    *,
    method: str = "gam",
    **options: Any,
) -> MergeReport:
    """Merge adapters of a model into a new one beside them, as PEFT's ``add_weighted_adapter`` would.

    The new adapter lies where its layers do and is neither active nor trainable until ``set_adapter``. Its dtype is
    that of the merge (by default the narrowest that holds all sources) or, where that is wider, of the base weights.
    Base weights, other adapters and the global random state stay as they are. ``options`` are those of
    ``gam_merge.merge``. Raises GamMergeError, and then the model has not changed.
    """
    if isinstance(model, PeftModel):
        _check_name(model, adapter_name)
    result = _merge(model, adapters, {"method": method, **options})
    _add(model, adapter_name, result.adapter)
    return result.report


@contextmanager
def with_adapter(model: PeftModel, adapter: Adapter, *, name: str = "gam_merge") -> Iterator[None]:
    """The model computes with an adapter that it does not keep. On leaving it is as it was.

    Raises GamMergeError, and then the model has not changed.
    """
    _check_name(model, name)
    active, activated = model.active_adapter, model.active_adapters
    with evaluating(model):
        _add(model, name, adapter)
        try:
            model.set_adapter(name)
            model.eval()
            yield
        finally:
            model.base_model.set_adapter(activated)  # type: ignore[operator]
            model.active_adapter = active
            model.delete_adapter(name)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode. On leaving, modes, what is trainable and the random state are as they were."""
    modes = [(module, module.training) for module in model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def _merge(model: PeftModel, adapters: Sequence[str], options: dict[str, Any]) -> MergeResult:
    if isinstance(adapters, str):
        raise GamMergeError(f"adapters is one name, {adapters!r}; give a list of names")
    sources = [from_model(model, name) for name in adapters]
    if any(source.is_dora for source in sources):
        options = {"base_model": _base_weights(model), **options}
    return merge(sources, **options)


def _base_weights(model: PeftModel) -> dict[str, BaseWeight]:
    """The weights under the adapters, shared with the model: DoRA depends on them."""
    found: dict[str, BaseWeight] = {}
    for name, layer in model.get_base_model().named_modules():
        if (
            isinstance(layer, LoraLayer)
            and (weight := getattr(layer.get_base_layer(), "weight", None)) is not None
        ):
            if not weight.is_floating_point():
                raise GamMergeError(
                    f"the weights of {name} are quantised; DoRA needs them as base_model=DIRECTORY"
                )
            transposed = isinstance(layer, Embedding) or bool(
                getattr(layer, "fan_in_fan_out", False)
            )
            found[name] = BaseWeight(MemoryTensor(weight), transposed)
    return found


def _check_name(model: PeftModel, name: str) -> None:
    """PEFT finds some of these only after it has changed layers."""
    if name in model.peft_config:
        raise GamMergeError(
            f"the model has an adapter {name!r} already; choose another name, or delete_adapter it"
        )
    try:
        torch.nn.ModuleDict({name: torch.nn.Identity()})
    except (KeyError, TypeError) as error:
        raise GamMergeError(
            f"{name!r} cannot be the name of a module of torch; choose another"
        ) from error


def _add(model: PeftModel, name: str, adapter: Adapter) -> None:
    """PEFT makes the layers, of random values: the random state is put back, so that training goes on as ever."""
    try:
        with torch.random.fork_rng():
            model.add_adapter(
                name,
                PeftConfig.from_peft_type(**adapter.config),
                autocast_adapter_dtype=adapter.dtype not in _HALF,
            )
    except (ValueError, TypeError) as error:
        raise GamMergeError(f"PEFT does not add the merged adapter {name!r}: {error}") from error
    loaded: Any = set_peft_model_state_dict(model, state_dict(adapter), adapter_name=name)
    # The sources are adapters of this very model. One end of tied weights may be left: PEFT fills it from the other.
    assert not any(".lora_" in key for key in loaded.unexpected_keys), loaded.unexpected_keys
