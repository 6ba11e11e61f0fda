"""adapter_config.json: every field that PEFT's LoraConfig knows, and what it means for a merge.

Names of modules come from the tensors and ranks from their shapes, so fields that only chose them
in training are ignored. A field that is on no list and away from its default is refused by name: it
may change what the factors mean.
"""

from collections.abc import Collection, Iterable, Mapping
from math import sqrt
from time import thread_time
from typing import Any

import regex

from gam_merge._common.errors import GamMergeError
from gam_merge._common.types import is_number
from gam_merge._read.peft_names import without_wrappers

MAX_NAME = 1000  # characters of a tensor's name or a pattern for it: each may be matched with each
_MAX_NAMES = 1000  # in a list of a config that every name is compared with
_PATTERN_SECONDS, _SECONDS = 1.0, 10.0  # for one match, and for all of an adapter

# Fields that a merge reads, here or in the reading of keys.
HONOURED = {
    "peft_type", "base_model_name_or_path", "revision", "task_type", "auto_mapping",
    "fan_in_fan_out", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern",
    "init_lora_weights", "target_modules", "target_parameters", "bias", "lora_bias",
    "modules_to_save", "trainable_token_indices", "ensure_weight_tying", "use_dora",
}  # fmt: skip
# Fields that say how the adapter was trained, placed or saved; its tensors mean the same.
IGNORED = {
    "peft_version", "inference_mode", "lora_dropout", "exclude_modules", "layers_to_transform",
    "layers_pattern", "megatron_core", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "qalora_group_size", "runtime_config",
}  # fmt: skip
# Fields of other libraries about training: the learning rates of LoRA+ and the kinds of adapter and
# model (ms-swift), merging while the model is evaluated (PEFT before 0.4), versions.
FOREIGN = {
    "lorap_lr_ratio", "lorap_emb_lr", "lora_dtype", "swift_type", "model_type", "model_key_mapping",
    "merge_weights", "transformers_version", "torch_dtype",
}  # fmt: skip
# Fields that change what the factors mean. Value: why such an adapter cannot be merged from its
# factors alone.
REFUSED = {
    "layer_replication": "its layers are copies of the base model's",
    "alora_invocation_tokens": "an activated LoRA applies to some tokens only",
    "use_qalora": "QALoRA pools the input",
    "use_bdlora": "block-diagonal LoRA has other factors",
    "arrow_config": "an Arrow router is not a single adapter",
    "megatron_config": "Megatron layers are split over devices",
    "velora_config": "VeLoRA keeps projections of its own besides the factors",
    "monteclora_config": "MonteCLoRA keeps samplers besides the factors",
    "kasa_config": "KaSA changes the base weights and scales the factors",
}
# How the factors were initialised. These start from the base weights and leave a changed base
# behind. Value: the way to a LoRA of the base as it was.
_CONVERT = "convert it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
_EXTRACT = (
    "fuse it into its own base with PEFT's merge_and_unload, of which gam-merge extract makes a "
    "LoRA"
)
_INIT_CHANGES_BASE = {
    **dict.fromkeys(("pissa", "olora", "corda", "lora_ga"), _CONVERT),
    "loftq": _EXTRACT,
}
_INIT_LEAVES_BASE = ("gaussian", "eva", "orthogonal", "mica", "true", "false")
_BIASES = ("none", "all", "lora_only")
# Modules that PEFT adds to modules_to_save, by task_type. Before 0.11 it did not write them down.
_CLASSIFIERS = ("classifier", "score")
_HEADS = {"SEQ_CLS": _CLASSIFIERS, "TOKEN_CLS": _CLASSIFIERS, "QUESTION_ANS": ("qa_outputs",)}

# Fields that make an adapter more, or other, than a plain LoRA, and their plain values, if those
# are not empty.
_VARIANTS: Mapping[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": None,
    "arrow_config": None,
    "bias": "none",
    "fan_in_fan_out": None,
    "init_lora_weights": True,
    "layer_replication": None,
    "lora_bias": None,
    "modules_to_save": None,
    "rank_pattern": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": None,
    "use_qalora": None,
    "use_rslora": None,
}


def check_type(where: str, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type") or config.get("swift_type") or "LORA"
    if kind != "LORA":
        raise GamMergeError(
            f"{where}: is {kind}, and only LoRA can be merged; PEFT's convert_to_lora converts "
            "many kinds, and gam-merge extract can make a LoRA from a fused model of any kind"
        )


def check_fields(where: str, config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        empty = value is None or value is False or value in ({}, [], "")
        if empty or name in HONOURED | IGNORED | FOREIGN:
            continue
        if name in REFUSED:
            raise GamMergeError(f"{where}: {name} is set and cannot be merged: {REFUSED[name]}")
        raise GamMergeError(
            f"{where}: {name} is set in its config and unknown here; if it changes nothing about "
            "the factors, remove it from the config"
        )
    bias = config.get("bias", "none")
    if bias is not None and bias not in _BIASES:
        raise GamMergeError(f"{where}: bias must be 'none', 'all' or 'lora_only', got {bias!r}")


def check_init(where: str, config: Mapping[str, Any]) -> None:
    init = config.get("init_lora_weights")
    name = str(init).lower()
    for start, remedy in _INIT_CHANGES_BASE.items():
        if name.startswith(start):
            raise GamMergeError(
                f"{where}: init_lora_weights={init!r} changed the base weights, so its factors are "
                f"not a delta of the original base; {remedy}"
            )
    if init is not None and name not in _INIT_LEAVES_BASE:
        raise GamMergeError(
            f"{where}: init_lora_weights={init!r} is unknown here and may have changed the base "
            "weights"
        )


def check_lists(where: str, config: Mapping[str, Any]) -> None:
    for name in ("modules_to_save", "target_parameters"):
        strings(where, config, name)


def check_base(where: str, config: Mapping[str, Any]) -> None:
    base = config.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise GamMergeError(f"{where}: base_model_name_or_path must be a string, got {base!r}")


# Each raises GamMergeError if the config says that the tensors are more, or other, than deltas of
# the base model.
CHECKS = (check_type, check_fields, check_init, check_lists)


def strings(where: str, config: Mapping[str, Any], name: str) -> list[str]:
    """Return a field that is a list of names, or nothing."""
    value = config.get(name) or []
    listed = isinstance(value, list | tuple | set)
    if not listed or not all(isinstance(entry, str) for entry in value):
        raise GamMergeError(f"{where}: {name} must be a list of names, got {value!r}")
    if len(value) > _MAX_NAMES:
        raise GamMergeError(
            f"{where}: {name} has {len(value)} names; at most {_MAX_NAMES} are read"
        )
    return list(value)


def heads(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the modules that PEFT trains whole because of the task: the model has one of them."""
    return _HEADS.get(task(config) or "", ())


def saved_modules(where: str, config: Mapping[str, Any]) -> list[str]:
    """Return the modules that PEFT trains whole, as the config or the task says."""
    return [*strings(where, config, "modules_to_save"), *heads(config)]


def alpha(config: Mapping[str, Any]) -> float | None:
    """Return the adapter's alpha, None if the config has none."""
    value = config.get("lora_alpha")
    return value if is_number(value) else None


def task(config: Mapping[str, Any]) -> str | None:
    """Return the task of the model, None if the config has none."""
    value = config.get("task_type")
    return value if isinstance(value, str) else None


def tokens(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the trained rows of embeddings, by the end of a module's name, "" for any.

    What is not a list of rows is left out: it is missed where the rows are needed.
    """
    indices = config.get("trainable_token_indices")
    by_module = indices if isinstance(indices, Mapping) else {"": indices}
    rows: dict[str, tuple[int, ...]] = {}
    for name, listed in by_module.items():
        if isinstance(listed, list) and all(type(row) is int and row >= 0 for row in listed):
            rows[name] = tuple(listed)
    return rows


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the config sets beyond a plain LoRA."""
    values: dict[str, Any] = {}
    for name, plain in _VARIANTS.items():
        value = config.get(name)
        if value and value != plain:
            values[name] = value
    return values


class RanksAndScales:
    """The ranks and scales that a config gives its modules.

    Patterns come from strangers' files: each is compiled once, and all matches of an adapter share
    the time that one may take. Every method raises GamMergeError for a value that is not a number.
    """

    def __init__(self, where: str, config: Mapping[str, Any]) -> None:
        self._where, self._config = where, config
        self._seconds = _SECONDS
        self._compiled: dict[str, regex.Pattern[str]] = {}

    def rank(self, name: str) -> int | None:
        """Return the rank of a module, None if the config gives it none."""
        value = self._number(name, "rank_pattern", "r")
        if value is None:
            return None
        if value != int(value) or value < 1:
            raise GamMergeError(
                f"{self._where}: r must be a positive integer, got {value!r} for module {name}"
            )
        return int(value)

    def scale(self, name: str, r: int) -> float:
        """Return alpha / r of a module of rank ``r``, or alpha / sqrt(r) with rsLoRA."""
        alpha = self._number(name, "alpha_pattern", "lora_alpha")
        if alpha is None:
            raise GamMergeError(
                f"{self._where}: lora_alpha is unknown; give it with --alpha (alpha= in Python)"
            )
        return alpha / (sqrt(r) if self._config.get("use_rslora") else r)

    def _number(self, name: str, pattern: str, field: str) -> float | None:
        """Return a module's own number, else the adapter's, else None."""
        patterns = self._config.get(pattern) or {}
        if not isinstance(patterns, Mapping):
            raise GamMergeError(f"{self._where}: {pattern} must be an object, got {patterns!r}")
        key = self._first_match(patterns, name)
        value = self._config.get(field) if key is None else patterns[key]
        if value is not None and not (is_number(value) and value >= 0):
            raise GamMergeError(
                f"{self._where}: {field} must be a finite number of at least 0, got {value!r} for "
                f"module {name}"
            )
        return value

    def _first_match(self, patterns: Iterable[str], name: str) -> str | None:
        """Return the first key that matches the whole name or a tail of it after a dot.

        This is PEFT's rule, and its order.
        """
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
                    f"{self._where}: matching the patterns in the config takes more than "
                    f"{_SECONDS:g} seconds"
                )
        return None

    def _compile(self, key: str) -> "regex.Pattern[str]":
        if key not in self._compiled:
            if len(key) > MAX_NAME:
                raise regex.error(f"it has {len(key)} characters")
            pattern = without_wrappers(key)
            self._compiled[key] = regex.compile(rf"(.*\.)?({pattern})$", cache_pattern=False)
        return self._compiled[key]


def pattern_keys(name: str, parameters: Collection[str]) -> list[str]:
    """Return what PEFT looks up in rank_pattern and alpha_pattern for a module.

    parameters: those of the module that are adapted by name; they are looked up one by one.
    """
    return [f"{owner(name)}.{parameter}" for parameter in parameters] or [owner(name)]


def owner(name: str) -> str:
    """Return the module of the model that a module of PEFT belongs to.

    PEFT wraps some modules in one another, as ``<owner>.base_layer.<name>``.
    """
    return f"{name}.".partition(".base_layer.")[0].removesuffix(".")
