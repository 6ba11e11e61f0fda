"""Parameters of a function, read off its signature: what users may set, checked before anything is read.

    def ties(entries, weights, *, density: Annotated[float, Range(0, 1), "share of entries kept"] = 0.2): ...

Types are float, int, bool and Literal of strings, each also ``| None``.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from gam_merge._common.errors import GamMergeError


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``."""

    low: float
    high: float = inf


@dataclass(frozen=True)
class Param:
    """One parameter of a method."""

    name: str
    type: str  # float, int, bool or choice
    default: Any
    doc: str
    range: Range | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False  # null, the default, leaves it to the method

    @property
    def allowed(self) -> str:
        """In words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.range is None:
            return {"bool": "true or false", "int": "a whole number", "float": "a number"}[
                self.type
            ]
        kind = "a whole number" if self.type == "int" else "a number"
        return f"{kind} of at least {self.range.low:g}" + (
            f" and at most {h:g}" if (h := self.range.high) < inf else ""
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. A bound that is not there is null."""
        low, high = (self.range.low, self.range.high) if self.range else (None, inf)
        return {
            "name": self.name,
            "type": self.type,
            "default": self.default,
            "low": low,
            "high": None if high == inf else high,
            "choices": list(self.choices),
            "doc": self.doc,
        }

    def parse(self, value: Any) -> Any:
        """The value as this parameter's type, given as that or as text. Raises ValueError."""
        if value is None and self.optional:
            return None
        if self.type == "choice":
            if value not in self.choices:
                raise ValueError
            return value
        if self.type == "bool":
            return {"true": True, "false": False}[str(value).lower()]
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        low, high = (self.range.low, self.range.high) if self.range else (-inf, inf)
        if not (isfinite(number) and low <= number <= high) or (
            self.type == "int" and number != int(number)
        ):
            raise ValueError
        return int(number) if self.type == "int" else number


def schema(function: Callable[..., Any], *, prefix: str = "") -> tuple[Param, ...]:
    """The keyword-only parameters of a function, each ``name: Annotated[type, Range(...), "doc"] = default``."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    found = [
        _param(p.name, hints[p.name], p.default) for p in parameters if p.kind is p.KEYWORD_ONLY
    ]
    return tuple(replace(param, name=prefix + param.name) for param in found)


def _param(name: str, hint: Any, default: Any) -> Param:
    kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    optional = get_origin(kind) is UnionType
    if optional:
        kind = next(arg for arg in get_args(kind) if arg is not NoneType)
    doc = next((extra for extra in extras if isinstance(extra, str)), "")
    if get_origin(kind) is Literal:
        return Param(name, "choice", default, doc, choices=get_args(kind), optional=optional)
    if kind not in (float, int, bool):
        raise TypeError(f"parameter {name} of a method is neither float, int, bool nor Literal")
    limits = next((extra for extra in extras if isinstance(extra, Range)), None)
    return Param(name, kind.__name__, default, doc, limits, optional=optional)


def validate(method: str, params: Sequence[Param], given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters with their values, defaults filled in. Raises GamMergeError."""
    known = {param.name: param for param in params}
    values = {param.name: param.default for param in params}
    for name, value in given.items():
        if name not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise GamMergeError(f"method {method} has no parameter {name!r}; {there}")
        try:
            values[name] = known[name].parse(value)
        except (ValueError, TypeError, KeyError, OverflowError):
            raise GamMergeError(
                f"{name} = {value!r} of method {method} is not {known[name].allowed}"
            ) from None
    return values
