"""Parameters of a function, read off its signature: what users may set, checked beforehand.

    def ties(entries, weights, *, density: Annotated[float, Range(0, 1), "share kept"] = 0.2): ...

Types are float, int, bool and Literal of strings, each also ``| None``.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from gam_merge._common.errors import GamMergeError


@dataclass(frozen=True)
class Range:
    """The numbers from ``low`` to ``high``: what a parameter of a method may be.

    Example:
        >>> from typing import Annotated
        >>> from gam_merge.rules import Range
        >>> Density = Annotated[float, Range(0, 1), "share of the entries that is kept"]
        >>> Range(1)
        Range(low=1, high=inf)
    """

    low: float
    high: float = inf


@dataclass(frozen=True)
class Param:
    """A parameter of a method."""

    name: str
    type: str  # float, int, bool or choice
    default: Any
    doc: str
    range: Range | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False  # null, the default, leaves it to the method

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.type == "bool":
            return "true or false"
        kind = "an integer" if self.type == "int" else "a number"
        if self.range is None:
            return kind
        if self.range.high == inf:
            return f"{kind} >= {self.range.low:g}"
        return f"{kind} in [{self.range.low:g}, {self.range.high:g}]"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON. A missing bound is null."""
        low, high = None, None
        if self.range is not None:
            low, high = self.range.low, self.range.high
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
        """Return a value, given as such or as text, in the type of this parameter.

        Raises ValueError, TypeError, KeyError or OverflowError if it is not allowed.
        """
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
        return self._number(float(value))

    def _number(self, number: float) -> float | int:
        limits = self.range or Range(-inf, inf)
        if not (isfinite(number) and limits.low <= number <= limits.high):
            raise ValueError
        if self.type == "float":
            return number
        if number != int(number):
            raise ValueError
        return int(number)


def schema(function: Callable[..., Any]) -> tuple[Param, ...]:
    """Return the parameters of a function: its keyword-only ones.

    Each is written as ``name: Annotated[type, Range(...), "doc"] = default``.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    settable = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return tuple(_param(p.name, hints[p.name], p.default) for p in settable)


def _param(name: str, hint: Any, default: Any) -> Param:
    kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    optional = get_origin(kind) is UnionType
    if optional:
        kind = next(arg for arg in get_args(kind) if arg is not NoneType)
    doc = next((extra for extra in extras if isinstance(extra, str)), "")
    if get_origin(kind) is Literal:
        return Param(name, "choice", default, doc, choices=get_args(kind), optional=optional)
    if kind not in (float, int, bool):
        raise TypeError(f"parameter {name} of a method must be float, int, bool or Literal")
    limits = next((extra for extra in extras if isinstance(extra, Range)), None)
    return Param(name, kind.__name__, default, doc, limits, optional=optional)


def validate(method: str, params: Sequence[Param], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all parameters with their values, defaults filled in. Raises GamMergeError."""
    known = {param.name: param for param in params}
    values = {param.name: param.default for param in params}
    for name, value in given.items():
        if name not in known:
            names = ", ".join(known) or "none"
            raise GamMergeError(f"method {method} has no parameter {name!r}; it has {names}")
        try:
            values[name] = known[name].parse(value)
        except (ValueError, TypeError, KeyError, OverflowError):
            raise GamMergeError(
                f"{name} of method {method} must be {known[name].allowed}, got {value!r}"
            ) from None
    return values
