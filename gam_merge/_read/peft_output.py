"""The adapter_config.json of an adapter that we write: scale folded in, lora_alpha = r.

So PEFT, vLLM, SGLang, llama.cpp and diffusers read it alike. Fields that describe the model and not
the training are carried over from the sources, where they agree.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._read.base_name import common_name
from gam_merge._read.layout import ExpertsLayout
from gam_merge._read.peft_config import heads, pattern_keys

_Configs = Sequence[Mapping[str, Any]]
_MAY_BE_TIED = {"modules_to_save", "embedding", "trainable_tokens"}


def merged_config(adapter: Adapter, sources: Sequence[Adapter]) -> dict[str, Any]:
    """Return the config of an adapter that was merged from ``sources``, or made without any."""
    described = sources or [adapter]
    configs = [source.config for source in sources]
    kinds = {extra.kind for extra in adapter.extras.values()}
    config = dict.fromkeys(("modules_to_save", "trainable_token_indices", "target_parameters"))
    config["base_model_name_or_path"] = common_name([source.base_model for source in described])
    config["task_type"] = _shared([source.task for source in described])
    revisions = [config.get("revision") for config in configs]
    config["revision"] = revisions[0] if revisions and _agree(revisions) else None
    config["auto_mapping"] = None  # names a library, which PEFT imports: never by strangers' word
    if "modules_to_save" in kinds:
        config["modules_to_save"] = _saved_modules(configs)
    if "trainable_tokens" in kinds:
        config["trainable_token_indices"] = _agreed(configs, "trainable_token_indices")
    transposed = bool(_agreed(configs, "fan_in_fan_out")) if sources else adapter.transposed
    tied = any(config.get("ensure_weight_tying") for config in configs)
    ranks = _other_ranks(adapter)
    return {
        **config,
        "peft_type": "LORA",
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "lora_dropout": 0.0,
        "bias": _bias(configs) if "bias" in kinds else "none",
        "lora_bias": "lora_bias" in kinds,
        "fan_in_fan_out": transposed,
        "use_rslora": False,
        "use_dora": adapter.is_dora,
        "init_lora_weights": True,
        "inference_mode": True,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "ensure_weight_tying": tied and not kinds.isdisjoint(_MAY_BE_TIED),
        "target_modules": _target_modules(adapter, sources, configs),
        "target_parameters": _target_parameters(adapter, sources, configs) or None,
    }


def disagreements(sources: Sequence[Adapter]) -> tuple[str, ...]:
    """Return notes on what the merge does not take from its sources, as they do not agree on it."""
    revisions = [source.config.get("revision") for source in sources]
    if _agree(revisions):
        return ()
    said = [f"{source.source}: {source.config.get('revision')}" for source in sources]
    return (
        "the adapters name different revisions of the base model, of which none is kept "
        f"({'; '.join(said)})",
    )


def _other_ranks(adapter: Adapter) -> dict[str, int]:
    """Return the ranks that are not the adapter's, by patterns that match a module alone."""
    rank = adapter.rank
    ranks: dict[str, int] = {}
    for module in adapter.modules.values():
        if module.rank != rank:
            for name in pattern_keys(module.name, _parameters(module)):
                ranks[f"^{re.escape(name)}"] = module.rank
    return ranks


def _parameters(module: LoraModule) -> tuple[str, ...]:
    return module.layout.parameters if isinstance(module.layout, ExpertsLayout) else ()


def _agree(values: Sequence[Any]) -> bool:
    """Tell whether all values are the same; null is a value."""
    return all(value == values[0] for value in values)


def _agreed(configs: _Configs, name: str) -> Any:
    """Return the value of a field, if all adapters that have one have the same."""
    return _shared([config.get(name) for config in configs])


def _shared(values: Sequence[Any]) -> Any:
    """Return the value that all have who have one."""
    known = [value for value in values if value is not None]
    return known[0] if known and all(value == known[0] for value in known) else None


def _bias(configs: _Configs) -> str:
    return "all" if any(config.get("bias") == "all" for config in configs) else "lora_only"


def _saved_modules(configs: _Configs) -> list[str]:
    names: set[str] = set()
    for config in configs:
        names |= {*(config.get("modules_to_save") or ()), *heads(config)}
    return sorted(names)


def _is_whole(adapter: Adapter, sources: Sequence[Adapter]) -> bool:
    """Return whether no module of the sources is left out."""
    return all(source.modules.keys() <= adapter.modules.keys() for source in sources)


def _target_modules(adapter: Adapter, sources: Sequence[Adapter], configs: _Configs) -> list[str]:
    """Return suffixes where they surely mean the same set, else full names, which always do.

    They do where every adapter named them as a list without exceptions and no module is left out.
    A module that PEFT wraps along with another is not named.
    """
    names: list[str] = []
    for module in adapter.modules.values():
        if module.wrapper is None and not isinstance(module.layout, ExpertsLayout):
            names.append(module.name)
    suffixes = {name.rpartition(".")[2] for name in names}
    named: set[str] = set()
    for config in configs:
        listed = config.get("target_modules")
        limited = config.get("layers_to_transform") is not None or config.get("exclude_modules")
        if not isinstance(listed, list) or limited:
            return sorted(names)
        named |= set(map(str, listed))
    if named == suffixes and _is_whole(adapter, sources):
        return sorted(suffixes)
    return sorted(names)


def _target_parameters(
    adapter: Adapter, sources: Sequence[Adapter], configs: _Configs
) -> list[str]:
    """Return the parameters as every adapter spells them, if all spell them alike.

    A model in PEFT takes no other spelling. Otherwise, or where a module is left out, full names.
    """
    spellings = {frozenset(map(str, config.get("target_parameters") or ())) for config in configs}
    if len(spellings) == 1 and _is_whole(adapter, sources):
        return sorted(spellings.pop())
    names: list[str] = []
    for module in adapter.modules.values():
        names += [f"{module.owner}.{parameter}" for parameter in _parameters(module)]
    return sorted(set(names))
