"""adapter_config.json: every field that PEFT's LoraConfig knows, and what it means for a merge.

Names of modules come from the tensors and ranks from their shapes, so that what only chose them in training is
ignored. A field that is on no list and away from its default is refused by name: it may change what the factors mean.
"""

import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import sqrt
from time import thread_time
from typing import Any

import regex

from gam_merge._common.errors import GamMergeError
from gam_merge._read.adapter import ExtraKind
from gam_merge._read.layout import ExpertsLayout, Layout

MAX_NAME = 1000  # characters of a tensor's name or a pattern for it: what is linear in them may be done for each
_MAX_NAMES = 1000  # in a list of a config that every name is compared with
_PATTERN_SECONDS, _SECONDS = 1.0, 10.0  # for one match, and for all of an adapter

# What a merge reads, here or in the reading of keys.
HONOURED = {
    *(
        "peft_type",
        "base_model_name_or_path",
        "revision",
        "task_type",
        "auto_mapping",
        "fan_in_fan_out",
        "r",
    ),
    *(
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "init_lora_weights",
        "target_modules",
    ),
    *(
        "target_parameters",
        "bias",
        "lora_bias",
        "modules_to_save",
        "trainable_token_indices",
        "ensure_weight_tying",
    ),
    "use_dora",
}
# What says how the adapter was trained, placed or saved, and leaves the meaning of its tensors alone.
IGNORED = {
    *(
        "peft_version",
        "inference_mode",
        "lora_dropout",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
    ),
    *(
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "qalora_group_size",
    ),
    "runtime_config",
}
# What changes what the factors mean. Value: why such an adapter cannot be merged from its factors alone.
REFUSED = {
    "layer_replication": "its layers are copies of the base model's",
    "alora_invocation_tokens": "an activated LoRA applies to some tokens only",
    "use_qalora": "QALoRA pools the input",
    "use_bdlora": "block-diagonal LoRA has other factors",
    "arrow_config": "an Arrow router is no single adapter",
    "megatron_config": "Megatron layers are split over devices",
    "velora_config": "VeLoRA keeps projections of its own beside the factors",
    "monteclora_config": "MonteCLoRA keeps samplers beside the factors",
    "kasa_config": "KaSA changes the base weights and scales the factors",
}
# How the factors were initialised. These start from the base weights and leave a changed base behind. Value: the way
# to a LoRA of the base as it was.
_CONVERT = "convert it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
_EXTRACT = "fuse it into its own base with PEFT's merge_and_unload, of which gam-merge extract makes a LoRA"
_INIT_CHANGES_BASE = {
    **dict.fromkeys(("pissa", "olora", "corda", "lora_ga"), _CONVERT),
    "loftq": _EXTRACT,
}
_INIT_LEAVES_BASE = ("gaussian", "eva", "orthogonal", "mica", "true", "false")


def check_type(where: str, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type") or "LORA"
    if kind != "LORA":
        raise GamMergeError(
            f"{where}: is {kind}, and only LoRA can be merged; PEFT's convert_to_lora makes one of many kinds, and "
            "gam-merge extract of a model that any kind was fused into"
        )


def check_fields(where: str, config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        if (
            name in HONOURED
            or name in IGNORED
            or value is None
            or value is False
            or value in ({}, [], "")
        ):
            continue
        if name in REFUSED:
            raise GamMergeError(f"{where}: {name} is set and cannot be merged: {REFUSED[name]}")
        raise GamMergeError(
            f"{where}: {name} is set in its config and unknown here; if it changes nothing about the factors, "
            "remove it from the config"
        )
    if config.get("bias") not in (None, "none", "all", "lora_only"):
        raise GamMergeError(
            f"{where}: bias is {config['bias']!r}, not 'none', 'all' or 'lora_only'"
        )


def check_init(where: str, config: Mapping[str, Any]) -> None:
    init = config.get("init_lora_weights")
    name = str(init).lower()
    if remedy := next(
        (way for start, way in _INIT_CHANGES_BASE.items() if name.startswith(start)), None
    ):
        raise GamMergeError(
            f"{where}: init_lora_weights={init!r} changed the base weights, so its factors are no delta of them; "
            f"{remedy}"
        )
    if init is not None and name not in _INIT_LEAVES_BASE:
        raise GamMergeError(
            f"{where}: init_lora_weights={init!r} is unknown here and may have changed the base weights"
        )


def check_lists(where: str, config: Mapping[str, Any]) -> None:
    for name in ("modules_to_save", "target_parameters"):
        strings(where, config, name)


# Each raises GamMergeError if the config says that the tensors are more, or other, than deltas of the base model.
CHECKS = (check_type, check_fields, check_init, check_lists)


def strings(where: str, config: Mapping[str, Any], name: str) -> list[str]:
    """A field that is a list of names, or nothing."""
    value = config.get(name) or []
    if not isinstance(value, list | tuple | set) or not all(
        isinstance(entry, str) for entry in value
    ):
        raise GamMergeError(f"{where}: {name} is {value!r}, not a list of names")
    if len(value) > _MAX_NAMES:
        raise GamMergeError(
            f"{where}: {name} has {len(value)} names; at most {_MAX_NAMES} are read"
        )
    return list(value)


class Numbers:
    """The ranks and scales that a config gives its modules. Raises GamMergeError for what is none.

    Patterns come from strangers' files: each is compiled once, and all matches of an adapter share the time that one
    may take.
    """

    def __init__(self, where: str, config: Mapping[str, Any]) -> None:
        self._where, self._config = where, config
        self._seconds = _SECONDS
        self._compiled: dict[str, regex.Pattern[str]] = {}

    def rank(self, name: str) -> int | None:
        """Of a module, None if the config gives it none."""
        value = self._number(name, "rank_pattern", "r")
        if value is not None and (value != int(value) or value < 1):
            raise GamMergeError(f"{self._where}: r = {value!r} for module {name} is no rank")
        return None if value is None else int(value)

    def scale(self, name: str, r: int) -> float:
        """alpha / r of a module of rank ``r``, alpha / sqrt(r) with rsLoRA."""
        alpha = self._number(name, "alpha_pattern", "lora_alpha")
        if alpha is None:
            raise GamMergeError(
                f"{self._where}: lora_alpha is not known; give it with --alpha (alpha= in Python)"
            )
        return alpha / (sqrt(r) if self._config.get("use_rslora") else r)

    def _number(self, name: str, pattern: str, field: str) -> float | None:
        """A module's own number, else the adapter's, else None; a finite positive number or an error."""
        patterns = self._config.get(pattern) or {}
        if not isinstance(patterns, Mapping):
            raise GamMergeError(f"{self._where}: {pattern} is not a table")
        key = self._first_match(patterns, name)
        value = self._config.get(field) if key is None else patterns[key]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value <= sys.float_info.max):
            raise GamMergeError(
                f"{self._where}: {field} = {value!r} for module {name} is not a number"
            )
        return value

    def _first_match(self, patterns: Iterable[str], name: str) -> str | None:
        """PEFT's rule: the first key, in order, that matches the whole name or a tail of it after a dot."""
        for key in patterns:
            start = thread_time()
            try:
                if self._compile(key).match(name, timeout=_PATTERN_SECONDS):
                    return key
            except (regex.error, TimeoutError, RecursionError) as error:
                raise GamMergeError(
                    f"{self._where}: pattern {key!r} in the config cannot be matched: {error}"
                ) from error
            self._seconds -= thread_time() - start
            if self._seconds < 0:
                raise GamMergeError(
                    f"{self._where}: matching the patterns in the config takes more than {_SECONDS:g} seconds"
                )
        return None

    def _compile(self, key: str) -> "regex.Pattern[str]":
        if key not in self._compiled:
            if len(key) > MAX_NAME:
                raise regex.error(f"it has {len(key)} characters")
            self._compiled[key] = regex.compile(rf"(.*\.)?({key})$", cache_pattern=False)
        return self._compiled[key]


def merged_config(
    configs: Sequence[Mapping[str, Any]],
    layouts: Mapping[str, Layout],
    kinds: Collection[ExtraKind],
    ranks: Mapping[str, int],
    *,
    dora: bool = False,
    whole: bool = True,
) -> dict[str, Any]:
    """The adapter_config.json of a merge: scale folded in, lora_alpha = r, so that every reader agrees.

    configs: of the adapters. layouts, ranks: of the modules of the merge. kinds: of its extras. whole: the modules
    are all that the adapters have. Fields that describe the model and not the training are carried over where the
    adapters agree.
    """
    rank = max(ranks.values())
    others = {
        key: r for name, r in ranks.items() if r != rank for key in _patterns(name, layouts[name])
    }
    shared = ("base_model_name_or_path", "revision", "task_type", "auto_mapping")
    saved = {entry for config in configs for entry in config.get("modules_to_save") or []}
    may_be_tied = {"modules_to_save", "embedding", "trainable_tokens"}.intersection(kinds)
    return {
        **{name: _agreed(configs, name) for name in shared},
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": _bias(configs) if "bias" in kinds else "none",
        "lora_bias": "lora_bias" in kinds,
        "fan_in_fan_out": bool(_agreed(configs, "fan_in_fan_out")),
        "use_rslora": False,
        "use_dora": dora,
        "init_lora_weights": True,
        "inference_mode": True,
        "rank_pattern": others,
        "alpha_pattern": others,
        "modules_to_save": sorted(saved) if "modules_to_save" in kinds else None,
        "trainable_token_indices": _agreed(configs, "trainable_token_indices")
        if "trainable_tokens" in kinds
        else None,
        "ensure_weight_tying": bool(may_be_tied)
        and any(config.get("ensure_weight_tying") for config in configs),
        "target_modules": _target_modules(configs, layouts, whole=whole),
        "target_parameters": _target_parameters(configs, layouts, whole=whole) or None,
    }


def _patterns(name: str, layout: Layout) -> list[str]:
    """Patterns that match a module alone, by PEFT's rule."""
    parameters = layout.parameters if isinstance(layout, ExpertsLayout) else ()
    return [f"^{re.escape(known)}" for known in config_names(name, parameters)]


def config_names(name: str, parameters: Collection[str]) -> list[str]:
    """What PEFT looks up in rank_pattern and alpha_pattern for a module, or for parameters of it."""
    return [f"{owner(name)}.{parameter}" for parameter in parameters] or [owner(name)]


def _agreed(configs: Sequence[Mapping[str, Any]], name: str) -> Any:
    values = [config[name] for config in configs if config.get(name) is not None]
    return values[0] if values and all(value == values[0] for value in values) else None


def _bias(configs: Sequence[Mapping[str, Any]]) -> str:
    return "all" if any(config.get("bias") == "all" for config in configs) else "lora_only"


def _target_modules(
    configs: Sequence[Mapping[str, Any]], layouts: Mapping[str, Layout], *, whole: bool
) -> list[str]:
    """Suffixes where every adapter named them as a list without exceptions and no module is left out, so that they
    mean the same set; else full names, which always do. A module that PEFT wraps along with another is not named."""
    modules = sorted(
        n
        for n, layout in layouts.items()
        if owner(n) == n and not isinstance(layout, ExpertsLayout)
    )
    suffixes = {name.rpartition(".")[2] for name in modules}
    for config in configs:
        listed = config.get("target_modules")
        limited = (
            not whole
            or config.get("layers_to_transform") is not None
            or config.get("exclude_modules")
        )
        if not isinstance(listed, list) or limited or not set(map(str, listed)) <= suffixes:
            return modules
    named = {str(entry) for config in configs for entry in config["target_modules"]}
    return sorted(suffixes) if named == suffixes else modules


def _target_parameters(
    configs: Sequence[Mapping[str, Any]], layouts: Mapping[str, Layout], *, whole: bool
) -> list[str]:
    """As every adapter spells them, if all do alike: a model in PEFT takes no other spelling. Else, or where a module
    is left out, full names."""
    experts = {
        owner(name): layout for name, layout in layouts.items() if isinstance(layout, ExpertsLayout)
    }
    spelled = {frozenset(map(str, config.get("target_parameters") or ())) for config in configs}
    if whole and len(spelled) == 1:
        return sorted(spelled.pop())
    return sorted(
        f"{name}.{parameter}" for name, layout in experts.items() for parameter in layout.parameters
    )


def owner(name: str) -> str:
    """The module of the model that a module of PEFT stands for: PEFT wraps some in one another."""
    return f"{name}.".partition(".base_layer.")[0].removesuffix(".")
