"""Merges the adapters of a live pipeline of diffusers, in its memory.

Of every component that has the adapters - UNet, transformer, text encoders - only the factors are
read, so any precision of the pipeline will do. DoRA also reads the base weights.

from gam_merge.integrations.diffusers import add_merged_adapter
pipeline.load_lora_weights("style.safetensors", adapter_name="style")
pipeline.load_lora_weights("person.safetensors", adapter_name="person")
add_merged_adapter(pipeline, ["style", "person"], "both", method="mean", weights=[0.4, 0.6])
pipeline.set_adapters("both")
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Unpack

from diffusers import DiffusionPipeline
from peft import get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer

from gam_merge._common.errors import GamMergeError
from gam_merge._lineup.options import RunOptions, explicit
from gam_merge._merge import MergeResult, merge
from gam_merge._read.adapter import Adapter, Extra, LoraModule
from gam_merge._read.diffusers import Diffusers
from gam_merge._read.weight import BaseWeight
from gam_merge._run.report import MergeReport
from gam_merge._state_dict import from_state_dict, state_dict
from gam_merge.integrations.peft import base_weights, check_module_name, evaluating


def from_pipeline(pipeline: DiffusionPipeline, adapter_name: str = "default_0") -> Adapter:
    """Take one adapter of a pipeline as a source of merges.

    It shares the pipeline's tensors and is read when a merge runs. Weights that ``set_adapters``
    gave play no part.

    Args:
        pipeline: a pipeline that loads LoRA.
        adapter_name: one of its adapters.

    Returns:
        Adapter: a source for ``merge``, with the modules of all components, in diffusers' format.

    Raises:
        GamMergeError: if the pipeline has no such adapter, or it cannot be merged.
    """
    components = _adapted(pipeline)
    names = _adapter_names(components)
    if adapter_name not in names:
        listed = ", ".join(names) or "none"
        raise GamMergeError(f"the pipeline has no adapter {adapter_name!r}; it has: {listed}")
    modules: dict[str, LoraModule] = {}
    extras: dict[str, Extra] = {}
    for component, model in components.items():
        if adapter_name not in model.peft_config:
            continue
        tensors = get_peft_model_state_dict(
            model, adapter_name=adapter_name, save_embedding_layers=False
        )
        config = model.peft_config[adapter_name]
        part = from_state_dict(tensors, config, name=f"{adapter_name} of {component}")
        for name, module in part.modules.items():
            full = f"{component}.{name}"
            modules[full] = replace(module, name=full)
        for name, extra in part.extras.items():
            full = f"{component}.{name}"
            extras[full] = replace(extra, name=full)
    return Adapter(adapter_name, modules, extras=extras, format=Diffusers.name)


@explicit()
def merge_adapters(
    pipeline: DiffusionPipeline, adapters: Sequence[str], **options: Unpack[RunOptions]
) -> Adapter:
    """Merge adapters of a pipeline into one outside of it: the pipeline is left as it is.

    Args:
        pipeline: a pipeline that loads LoRA.
        adapters: names of its adapters; ``anchor`` may be one of them.

    Returns:
        Adapter: the merge, in memory.

    Raises:
        GamMergeError: as ``gam_merge.merge`` does.
    """
    return _merge(pipeline, adapters, options).adapter


@explicit()
def add_merged_adapter(
    pipeline: DiffusionPipeline,
    adapters: Sequence[str],
    adapter_name: str,
    **options: Unpack[RunOptions],
) -> MergeReport:
    """Merge adapters of a pipeline into a new one next to them.

    diffusers itself loads the new adapter, as it loads a file. It is not active until
    ``set_adapters``. Base weights, other adapters and the global random state stay as they are.

    Args:
        pipeline: a pipeline that loads LoRA.
        adapters: names of its adapters; ``anchor`` may be one of them.
        adapter_name: the name of the new adapter.

    Returns:
        MergeReport: what the merge did.

    Raises:
        GamMergeError: and then the pipeline has not changed.
    """
    if adapter_name in _adapter_names(_adapted(pipeline)):
        raise GamMergeError(
            f"the pipeline already has an adapter {adapter_name!r}; choose another name, or "
            "delete_adapters it"
        )
    check_module_name(adapter_name)
    result = _merge(pipeline, adapters, options)
    _add(pipeline, adapter_name, result.adapter)
    return result.report


def _merge(
    pipeline: DiffusionPipeline, adapters: Sequence[str], options: RunOptions
) -> MergeResult:
    if isinstance(adapters, str):
        raise GamMergeError(f"adapters must be a list of names, got the one name {adapters!r}")
    sources = [from_pipeline(pipeline, name) for name in adapters]
    if any(source.is_dora for source in sources) and options.get("base_model") is None:
        options["base_model"] = _base_weights(pipeline)
    return merge(sources, **options)


def _base_weights(pipeline: DiffusionPipeline) -> dict[str, BaseWeight]:
    """Return the weights under the adapters of all components, shared with the pipeline."""
    weights: dict[str, BaseWeight] = {}
    for component, model in _adapted(pipeline).items():
        for name, weight in base_weights(model).items():
            weights[f"{component}.{name}"] = weight
    return weights


def _adapted(pipeline: Any) -> Mapping[str, Any]:
    """Return the components that have adapters, by name. Raises GamMergeError."""
    loads = isinstance(pipeline, DiffusionPipeline) and hasattr(pipeline, "load_lora_weights")
    if not loads:
        kind = type(pipeline).__name__
        raise GamMergeError(
            f"pipeline must be a pipeline of diffusers that loads LoRA, got {kind}; give the "
            "pipeline itself, not one of its components"
        )
    components = pipeline.components.items()
    return {name: model for name, model in components if getattr(model, "peft_config", None)}


def _adapter_names(components: Mapping[str, Any]) -> list[str]:
    names: dict[str, None] = {}
    for model in components.values():
        names |= dict.fromkeys(model.peft_config)
    return list(names)


def _add(pipeline: Any, name: str, adapter: Adapter) -> None:
    """Let diffusers load an adapter, and activate again what was active before."""
    try:
        with _as_before(pipeline):
            pipeline.load_lora_weights(state_dict(adapter), adapter_name=name)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        pipeline.delete_adapters(name)
        raise GamMergeError(
            f"diffusers does not load the merged adapter {name!r}: {error}"
        ) from error
    # The sources are adapters of this very pipeline, so every module has its place.
    assert from_pipeline(pipeline, name).modules.keys() == adapter.modules.keys()


@contextmanager
def _as_before(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Put active adapters, modes, trainable parameters and the random state back on leaving."""
    components = _adapted(pipeline).values()
    active: list[tuple[BaseTunerLayer, list[str]]] = []
    for model in components:
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):
                active.append((layer, list(layer.active_adapters)))
    with ExitStack() as stack:
        for model in components:
            stack.enter_context(evaluating(model))
        try:
            yield
        finally:
            for layer, names in active:
                layer.set_adapter(names)
