"""Merges the adapters of a live ``PeftModel``, in its memory.

Only factors are read, so any base will do. DoRA also reads the base weights, which must not be
quantised.

from gam_merge.integrations.peft import add_merged_adapter
add_merged_adapter(model, ["math", "code"], "both", method="gam", weights=[0.6, 0.4])
model.set_adapter("both")
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import Embedding, LoraLayer

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import MemoryTensor
from gam_merge._convert import convert
from gam_merge._lineup.options import RunOptions, explicit
from gam_merge._merge import MergeResult, merge
from gam_merge._read.adapter import Adapter
from gam_merge._read.peft import Peft
from gam_merge._read.weight import BaseWeight
from gam_merge._run.report import MergeReport
from gam_merge._state_dict import from_state_dict, state_dict

_HALF = (torch.float16, torch.bfloat16)


def from_model(model: PeftModel, adapter_name: str = "default") -> Adapter:
    """Take one adapter of a model as a source of merges.

    It shares the model's tensors and is read when a merge runs.

    Args:
        model: a PeftModel.
        adapter_name: one of its adapters.

    Returns:
        Adapter: a source for ``merge``.

    Raises:
        GamMergeError: if the model has no such adapter, or it cannot be merged.
    """
    if not isinstance(model, PeftModel):
        kind = type(model).__name__
        raise GamMergeError(f"model must be a PeftModel, got {kind}; wrap it with get_peft_model")
    if adapter_name not in model.peft_config:
        names = ", ".join(model.peft_config)
        raise GamMergeError(f"the model has no adapter {adapter_name!r}; it has: {names}")
    config = model.peft_config[adapter_name]
    # All adapters of the model share its embeddings: PEFT need not find out whether they grew.
    tensors = get_peft_model_state_dict(
        model, adapter_name=adapter_name, save_embedding_layers=False
    )
    return from_state_dict(tensors, config, name=adapter_name)


@explicit()
def merge_adapters(
    model: PeftModel, adapters: Sequence[str], **options: Unpack[RunOptions]
) -> Adapter:
    """Merge adapters of a model into one outside of it: the model is left as it is.

    Args:
        model: a PeftModel.
        adapters: names of its adapters; ``anchor`` may be one of them.

    Returns:
        Adapter: the merge, in memory.

    Raises:
        GamMergeError: as ``gam_merge.merge`` does.
    """
    return _merge(model, adapters, options).adapter


@explicit()
def add_merged_adapter(
    model: PeftModel,
    adapters: Sequence[str],
    adapter_name: str,
    **options: Unpack[RunOptions],
) -> MergeReport:
    """Merge adapters of a model into a new one next to them.

    As PEFT's ``add_weighted_adapter`` does. The new adapter lies where its layers do and is neither
    active nor trainable until ``set_adapter``. Its dtype is that of the merge (by default the
    narrowest that holds all sources) or, where that is wider, of the base weights. Base weights,
    other adapters and the global random state stay as they are.

    Args:
        model: a PeftModel.
        adapters: names of its adapters; ``anchor`` may be one of them.
        adapter_name: the name of the new adapter.

    Returns:
        MergeReport: what the merge did.

    Raises:
        GamMergeError: and then the model has not changed.
    """
    if isinstance(model, PeftModel):
        _check_name(model, adapter_name)
    result = _merge(model, adapters, options)
    _add(model, adapter_name, result.adapter)
    return result.report


@contextmanager
def with_adapter(model: PeftModel, adapter: Adapter, *, name: str = "gam_merge") -> Iterator[None]:
    """Let a model compute with an adapter that it does not keep. On leaving it is as it was.

    Args:
        model: a PeftModel.
        adapter: from ``merge``, or anything that fits the model.
        name: under which the model holds it meanwhile.

    Raises:
        GamMergeError: and then the model has not changed.
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
    """Put a model into evaluation mode.

    On leaving, modes, trainable parameters and the random state are as they were.
    """
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


def _merge(model: PeftModel, adapters: Sequence[str], options: RunOptions) -> MergeResult:
    if isinstance(adapters, str):
        raise GamMergeError(f"adapters must be a list of names, got the one name {adapters!r}")
    sources = [from_model(model, name) for name in adapters]
    if any(source.is_dora for source in sources) and options.get("base_model") is None:
        options["base_model"] = base_weights(model.get_base_model())
    return merge(sources, **options)


def base_weights(model: torch.nn.Module) -> dict[str, BaseWeight]:
    """Return the weights under the adapters, shared with the model: DoRA depends on them."""
    weights: dict[str, BaseWeight] = {}
    for name, layer in model.named_modules():
        weight = getattr(layer.get_base_layer(), "weight", None) if _is_lora(layer) else None
        if weight is None:
            continue
        if not weight.is_floating_point():
            raise GamMergeError(
                f"the weights of {name} are quantised; DoRA needs them as base_model=DIRECTORY"
            )
        transposed = isinstance(layer, Embedding) or bool(getattr(layer, "fan_in_fan_out", False))
        weights[name] = BaseWeight(MemoryTensor(weight), transposed)
    return weights


def _is_lora(layer: Any) -> bool:
    return isinstance(layer, LoraLayer)


def _check_name(model: PeftModel, name: str) -> None:
    """Raise GamMergeError for names that PEFT refuses only after it has changed layers."""
    if name in model.peft_config:
        raise GamMergeError(
            f"the model already has an adapter {name!r}; choose another name, or delete_adapter it"
        )
    check_module_name(name)


def check_module_name(name: str) -> None:
    """Raise GamMergeError for a name that torch does not let a module have."""
    try:
        torch.nn.ModuleDict({name: torch.nn.Identity()})
    except (KeyError, TypeError) as error:
        raise GamMergeError(
            f"{name!r} cannot be the name of a module of torch; choose another"
        ) from error


def _add(model: PeftModel, name: str, adapter: Adapter) -> None:
    """Add an adapter. PEFT fills its layers with random values: the random state is put back."""
    if adapter.format != Peft.name:
        adapter = convert(adapter, format=Peft.name).adapter
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
    # The sources are adapters of this very model. One end of tied weights may be missing: PEFT
    # fills it from the other.
    assert not any(".lora_" in key for key in loaded.unexpected_keys), loaded.unexpected_keys
