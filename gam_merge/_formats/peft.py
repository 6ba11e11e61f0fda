"""PEFT's adapter directory: adapter_config.json and adapter_model.safetensors.

Keys are ``base_model.model.<module>.lora_A.weight`` (r, in) and ``.lora_B.weight`` (out, r). The scale is
lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora; alpha_pattern overrides lora_alpha for some modules and
rank_pattern r. What is not read here yet is refused by name: nothing in the file is passed over in silence.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from math import sqrt
from pathlib import PurePath
from typing import Any

import regex

from gam_merge._adapter import Adapter, LoraModule
from gam_merge._errors import GamMergeError, collecting
from gam_merge._tensors import LazyTensor

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
_PATTERN_SECONDS = 1.0  # patterns come from strangers' files

# Fields that change what the factors mean. Value: why such an adapter cannot be merged from its factors alone.
_REFUSED = {
    "use_dora": "DoRA rescales rows of the base weight",
    "lora_bias": "its factors carry a bias (lora_B.bias)",
    "modules_to_save": "it holds whole trained modules",
    "trainable_token_indices": "it holds trained token embeddings",
    "target_parameters": "its factors are stacked over experts",
    "layer_replication": "its layers are copies of the base model's",
    "alora_invocation_tokens": "an activated LoRA applies to some tokens only",
    "use_qalora": "QALoRA pools the input",
    "use_bdlora": "block-diagonal LoRA has other factors",
    "arrow_config": "an Arrow router is no single adapter",
    "megatron_config": "Megatron layers are split over devices",
}
_INIT_REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "kasa")


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
    for check in (_check_type, _check_fields, _check_init):
        with collecting(problems):
            check(where, config)
    factors: dict[str, dict[str, LazyTensor]] = {}
    for key, tensor in tensors.items():
        with collecting(problems):
            module, factor = _factor(where, key)
            factors.setdefault(module, {})[factor] = tensor
    modules: dict[str, LoraModule] = {}
    for name, pair in sorted(factors.items()):
        with collecting(problems):
            modules[name] = _module(where, config, name, pair)
    if not factors:
        with collecting(problems):
            raise GamMergeError(f"{where}: holds no LoRA factors")
    return Adapter(source, modules, config.get("base_model_name_or_path"), dict(config))


def _factor(where: str, key: str) -> tuple[str, str]:
    """The module and the letter of the factor that a key names."""
    match = _FACTOR.fullmatch(key.removeprefix(PREFIX))
    if match is None:
        raise GamMergeError(f"{where}: tensor {key} is no LoRA factor of a linear layer and is not supported yet")
    return match["module"], match["factor"]


def _check_type(where: str, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise GamMergeError(f"{where}: is a {kind} adapter; only LoRA can be merged (PEFT's convert_to_lora makes one)")


def _check_fields(where: str, config: Mapping[str, Any]) -> None:
    for name, why in _REFUSED.items():
        if config.get(name):
            raise GamMergeError(f"{where}: {name} is set and not supported: {why}")
    if config.get("bias", "none") != "none":
        raise GamMergeError(f"{where}: bias={config['bias']!r} is not supported yet; only bias='none' is")


def _check_init(where: str, config: Mapping[str, Any]) -> None:
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_INIT_REWRITES_BASE):
        raise GamMergeError(
            f"{where}: init_lora_weights={init!r} changed the base weights, so its factors are no delta of them; "
            "convert it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )


def _module(where: str, config: Mapping[str, Any], name: str, pair: Mapping[str, LazyTensor]) -> LoraModule:
    if len(pair) < 2:
        missing = "B" if "A" in pair else "A"
        raise GamMergeError(f"{where}: module {name} has no lora_{missing}.weight; the file is not whole")
    a, b = pair["A"], pair["B"]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise GamMergeError(f"{where}: module {name} has A {a.shape} and B {b.shape}, not (r, in) and (out, r)")
    rank = _number(where, config, name, "rank_pattern", "r", default=a.shape[0])
    if rank != a.shape[0]:
        raise GamMergeError(f"{where}: module {name} has rank {a.shape[0]} by its tensors and {rank} by its config")
    alpha = _number(where, config, name, "alpha_pattern", "lora_alpha", default=None)
    if alpha is None:
        raise GamMergeError(f"{where}: lora_alpha is not known; give it with --alpha (alpha= in Python)")
    return LoraModule(name, a, b, alpha / (sqrt(rank) if config.get("use_rslora") else rank))


def _number(where: str, config: Mapping[str, Any], name: str, pattern: str, field: str, default: Any) -> Any:
    """A module's own number, else the adapter's, else the default; a finite positive number or an error."""
    patterns = config.get(pattern) or {}
    if not isinstance(patterns, Mapping):
        raise GamMergeError(f"{where}: {pattern} is not a table")
    key = _first_match(where, patterns, name)
    value = config.get(field, default) if key is None else patterns[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value <= sys.float_info.max):
        raise GamMergeError(f"{where}: {field} = {value!r} for module {name} is not a number")
    return value


def _first_match(where: str, patterns: Iterable[str], name: str) -> str | None:
    """PEFT's rule: the first key, in order, that matches the whole name or a tail of it after a dot."""
    for key in patterns:
        try:
            if regex.match(rf"(.*\.)?({key})$", name, timeout=_PATTERN_SECONDS):
                return key
        except (regex.error, TimeoutError) as error:
            raise GamMergeError(f"{where}: pattern {key!r} in the config cannot be matched: {error}") from error
    return None


def config_names(weights: PurePath) -> tuple[str, ...]:
    """The names beside a bare file of weights under which its config is looked for, in that order."""
    return f"{weights.stem}.json", f"{weights.stem}_config.json", CONFIG_NAME


def factor_keys(module: str) -> tuple[str, str]:
    """The keys of A and B of a module in a written adapter."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def adapter_tensors(adapter: Adapter) -> dict[str, LazyTensor]:
    """All tensors of an adapter, by the keys under which it is written."""
    tensors: dict[str, LazyTensor] = {}
    for name, module in adapter.modules.items():
        key_a, key_b = factor_keys(name)
        tensors[key_a], tensors[key_b] = module.a, module.b
    return tensors


def merged_config(adapters: Iterable[Adapter], modules: Iterable[str], rank: int) -> dict[str, Any]:
    """The adapter_config.json of a merge: scale folded in, one rank, lora_alpha = r, so that every reader agrees.

    Fields that describe the model and not the training are carried over where the adapters agree.
    """
    configs = [adapter.config for adapter in adapters]
    shared = ("base_model_name_or_path", "revision", "task_type", "fan_in_fan_out", "auto_mapping")
    return {
        **{name: _agreed(configs, name) for name in shared},
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": bool(_agreed(configs, "fan_in_fan_out")),
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "target_modules": _target_modules(configs, list(modules)),
    }


def _agreed(configs: list[Mapping[str, Any]], name: str) -> Any:
    values = [config[name] for config in configs if config.get(name) is not None]
    return values[0] if values and all(value == values[0] for value in values) else None


def _target_modules(configs: list[Mapping[str, Any]], modules: list[str]) -> list[str]:
    """Suffixes where every adapter named them as a list without exceptions, so that they mean the same set; else
    full names, which always do."""
    suffixes = {name.rpartition(".")[2] for name in modules}
    for config in configs:
        listed = config.get("target_modules")
        limited = config.get("layers_to_transform") is not None or config.get("exclude_modules")
        if not isinstance(listed, list) or limited or not set(map(str, listed)) <= suffixes:
            return sorted(modules)
    named = {str(entry) for config in configs for entry in config["target_modules"]}
    return sorted(suffixes) if named == suffixes else sorted(modules)
