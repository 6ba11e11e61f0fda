"""Weights and method parameters that may differ from module to module.

A setting is one value for all modules; or a list of numbers, spread evenly over the depth of the model and interpolated
between; or a list of ``{"filter": pattern, "value": setting}``, of which the first that fits the module's name holds.
A pattern with ``*``, ``?`` or ``[`` must fit the whole name, one without is looked for in it.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from gam_merge._common.errors import GamMergeError
from gam_merge._common.types import Setting

_MAX_DEPTH = 10_000
_LAYER = re.compile(r"(?P<stack>.*?)\b(?P<number>\d+)\.")


@dataclass(frozen=True)
class Settings:
    """The weights of all adapters and the parameters of the method, in every module. Small: it travels to workers.

    ``layers`` holds the highest layer number of each stack of layers ("model.layers." -> 31).
    """

    weights: tuple[Setting, ...]
    params: Mapping[str, Setting] = field(default_factory=dict[str, Setting])
    layers: Mapping[str, int] = field(default_factory=dict[str, int])

    def weights_of(self, module: str) -> tuple[float, ...]:
        """(N,) as the user gave them. Raises GamMergeError if a setting says nothing for the module."""
        return tuple(self._value("weight", weight, module) for weight in self.weights)

    def params_of(self, module: str) -> dict[str, Any]:
        """Of the method, by name. Raises GamMergeError if a setting says nothing for the module."""
        return {name: self._value(name, setting, module) for name, setting in self.params.items()}

    def _value(self, what: str, setting: Setting, module: str) -> Any:
        if not isinstance(setting, list | tuple):
            return setting
        if not isinstance(setting[0], Mapping):
            depth = self._depth(what, module) * (len(setting) - 1)
            return float(np.interp(depth, range(len(setting)), setting))
        for entry in setting:
            if fits(entry["filter"], module):
                return self._value(what, entry["value"], module)
        raise GamMergeError(
            f"no filter of {what} fits module {module}; add one for the rest: {{filter: '*', value: ...}}"
        )

    def _depth(self, what: str, module: str) -> float:
        """0 in the first layer, 1 in the last."""
        match = _LAYER.match(module)
        if match is None:
            raise GamMergeError(
                f"{what} changes over depth, but module {module} has no layer number; give it a filter"
            )
        return int(match["number"]) / max(1, self.layers[match["stack"]])


def make_settings(
    weights: Sequence[Setting], params: Mapping[str, Setting], modules: Iterable[str]
) -> Settings:
    """Settings for these modules. Raises GamMergeError if one is malformed or a filter fits no module."""
    names = list(modules)
    for weight in weights:
        check_setting("weight", weight, number=True)
    for name, setting in params.items():
        check_setting(name, setting)
    for what, setting in (*(("weight", weight) for weight in weights), *params.items()):
        for pattern in _patterns(setting):
            if not any(fits(pattern, name) for name in names):
                raise GamMergeError(
                    f"{what}: filter {pattern!r} fits no module, for instance not {names[0]}"
                )
    layers: dict[str, int] = {}
    for match in filter(None, map(_LAYER.match, names)):
        layers[match["stack"]] = max(int(match["number"]), layers.get(match["stack"], 0))
    return Settings(tuple(weights), dict(params), layers)


def fits(pattern: str, module: str) -> bool:
    """Whether a filter is for a module."""
    return fnmatchcase(module, pattern) if re.search(r"[*?[]", pattern) else pattern in module


def check_setting(what: str, setting: Setting, *, number: bool = False) -> None:
    """Raises GamMergeError if a setting is malformed; with ``number`` also if its values are no finite numbers."""
    if isinstance(setting, Mapping):
        raise GamMergeError(
            f"{what} is {dict(setting)!r}; put filters into a list: [{{filter: pattern, value: ...}}]"
        )
    if not isinstance(setting, list | tuple):
        if number and not _is_number(setting):
            raise GamMergeError(f"{what} is {setting!r}, not a finite number")
    elif setting and all(isinstance(entry, Mapping) for entry in setting):
        for entry in setting:
            if set(entry) != {"filter", "value"} or not isinstance(entry["filter"], str):
                raise GamMergeError(
                    f"{what} has {dict(entry)!r} where it should have {{filter: pattern, value: ...}}"
                )
            check_setting(what, entry["value"], number=number)
    elif len(setting) > _MAX_DEPTH:
        raise GamMergeError(
            f"{what} is a list of {len(setting)} numbers over depth; no model has so many layers"
        )
    elif not setting or not all(map(_is_number, setting)):
        raise GamMergeError(
            f"{what} is {setting!r}, neither a list of numbers nor one of {{filter: ..., value: ...}}"
        )


def values(setting: Setting) -> Iterator[Any]:
    """Every value that a setting names."""
    for entry in setting if isinstance(setting, list | tuple) else (setting,):
        yield from values(entry["value"]) if isinstance(entry, Mapping) else (entry,)


def _patterns(setting: Setting) -> Iterator[str]:
    for entry in setting if isinstance(setting, list | tuple) else ():
        if isinstance(entry, Mapping):
            yield entry["filter"]
            yield from _patterns(entry["value"])


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )
