"""Weights and method parameters that may differ from module to module.

A setting is one value for all modules; or a list of numbers, spread evenly over the depth of the
model and interpolated between; or a list of ``{"filter": pattern, "value": setting}``, of which the
first that fits the module holds. A pattern of layer numbers, ``7``, ``0-9`` or ``10-``, is for the
modules of these layers. A pattern with ``*``, ``?`` or ``[`` must fit the whole name, so ``*`` is
for all that are left; any other is looked for in the name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from gam_merge._common.errors import GamMergeError
from gam_merge._common.names import layer_number
from gam_merge._common.types import Setting, is_number

_MAX_DEPTH = 10_000
_LAYERS = re.compile(r"(?P<first>\d+)(?P<to>-(?P<last>\d*))?")  # 7, 0-9, 10-


@dataclass(frozen=True)
class Settings:
    """The weights of all adapters and the parameters of the method, in every module.

    ``layers`` holds the highest layer number of each stack of layers ("model.layers." -> 31).
    Small: it travels to workers.
    """

    weights: tuple[Setting, ...]
    params: Mapping[str, Setting] = field(default_factory=dict[str, Setting])
    layers: Mapping[str, int] = field(default_factory=dict[str, int])

    def weights_of(self, module: str) -> tuple[float, ...]:
        """Return the weights (N,) in a module, as the user gave them.

        Raises GamMergeError if a setting says nothing for the module.
        """
        return tuple(self._value("weight", weight, module) for weight in self.weights)

    def params_of(self, module: str) -> dict[str, Any]:
        """Return the parameters of the method in a module, as the user gave them.

        Raises GamMergeError if a setting says nothing for the module.
        """
        return {name: self._value(name, value, module) for name, value in self.params.items()}

    def _value(self, name: str, setting: Setting, module: str) -> Any:
        if not isinstance(setting, list | tuple):
            return setting
        if not isinstance(setting[0], Mapping):
            depth = self._depth(name, module) * (len(setting) - 1)
            return float(np.interp(depth, range(len(setting)), setting))
        for entry in setting:
            if fits(entry["filter"], module):
                return self._value(name, entry["value"], module)
        raise GamMergeError(
            f"{name}: no filter fits module {module}; add one for the rest: "
            "{filter: '*', value: ...}"
        )

    def _depth(self, name: str, module: str) -> float:
        """Return 0 in the first layer, 1 in the last."""
        layer = layer_number(module)
        if layer is None:
            raise GamMergeError(
                f"{name} changes over depth, but module {module} has no layer number; give it a "
                "filter"
            )
        stack, number = layer
        return number / max(1, self.layers[stack])


def make_settings(
    weights: Sequence[Setting], params: Mapping[str, Setting], modules: Iterable[str]
) -> Settings:
    """Return the settings for some modules.

    Raises GamMergeError if one is malformed, or a filter fits no module.
    """
    names = list(modules)
    for weight in weights:
        check_setting("weight", weight, number=True)
        _check_filters("weight", weight, names)
    for name, setting in params.items():
        check_setting(name, setting)
        _check_filters(name, setting, names)
    layers: dict[str, int] = {}
    for name in names:
        layer = layer_number(name)
        if layer is not None:
            stack, number = layer
            layers[stack] = max(number, layers.get(stack, 0))
    return Settings(tuple(weights), dict(params), layers)


def fits(pattern: str, module: str) -> bool:
    """Tell whether a filter is for a module."""
    layers = _LAYERS.fullmatch(pattern)
    if layers:
        layer = layer_number(module)
        return layer is not None and _within(layer[1], layers)
    if re.search(r"[*?[]", pattern):
        return fnmatchcase(module, pattern)
    return pattern in module


def _within(layer: int, layers: re.Match[str]) -> bool:
    first = int(layers["first"])
    if not layers["to"]:
        return layer == first
    return layer >= first and (not layers["last"] or layer <= int(layers["last"]))


def check_setting(name: str, setting: Setting, *, number: bool = False) -> None:
    """Raise GamMergeError if a setting is malformed.

    number: its values must be finite numbers.
    """
    if isinstance(setting, Mapping):
        raise GamMergeError(
            f"{name} must be a list of filters, [{{filter: pattern, value: ...}}], "
            f"got {dict(setting)!r}"
        )
    if not isinstance(setting, list | tuple):
        if number and not is_number(setting):
            hint = ""
            if isinstance(setting, str) and ":" in setting:
                hint = "; filters are spelled [{filter: 0-9, value: 1}, {filter: '*', value: 0.5}]"
            raise GamMergeError(f"{name} must be a finite number, got {setting!r}{hint}")
    elif setting and all(isinstance(entry, Mapping) for entry in setting):
        for entry in setting:
            if set(entry) != {"filter", "value"} or not isinstance(entry["filter"], str):
                raise GamMergeError(
                    f"{name} must have entries {{filter: pattern, value: ...}}, got {dict(entry)!r}"
                )
            check_setting(name, entry["value"], number=number)
    elif len(setting) > _MAX_DEPTH:
        raise GamMergeError(
            f"{name} is a list of {len(setting)} numbers over depth; no model has so many layers"
        )
    elif not setting or not all(map(is_number, setting)):
        raise GamMergeError(
            f"{name} must be a list of numbers or of {{filter: ..., value: ...}}, got {setting!r}"
        )


def values(setting: Setting) -> Iterator[Any]:
    """Yield every value that a setting names."""
    if not isinstance(setting, list | tuple):
        yield setting
        return
    for entry in setting:
        if isinstance(entry, Mapping):
            yield from values(entry["value"])
        else:
            yield entry


def _check_filters(name: str, setting: Setting, modules: Sequence[str]) -> None:
    for pattern in _patterns(setting):
        if not any(fits(pattern, module) for module in modules):
            raise GamMergeError(
                f"{name}: filter {pattern!r} fits no module, for instance not {modules[0]}"
            )


def _patterns(setting: Setting) -> Iterator[str]:
    if not isinstance(setting, list | tuple):
        return
    for entry in setting:
        if isinstance(entry, Mapping):
            yield entry["filter"]
            yield from _patterns(entry["value"])
