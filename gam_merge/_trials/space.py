"""The space of a search: settings of a recipe as points of the unit cube.

Weights that a method normalises live on a simplex: N of them are N - 1 coordinates, and a uniform
point of the cube is a uniform point of the simplex (stick-breaking).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

from gam_merge._common.errors import GamMergeError
from gam_merge._methods import get_method
from gam_merge._methods._schema import Param
from gam_merge._recipes.recipe import Recipe

Point = Sequence[float]  # coordinates in [0, 1]


class Axis(Protocol):
    """One or more coordinates that belong together."""

    @property
    def size(self) -> int: ...

    def overrides(self, point: Point) -> Iterator[str]:
        """Yield settings of a recipe as ``KEY=VALUE``."""
        ...

    def start(self, recipe: Recipe) -> Point:
        """Return the point of the recipe itself."""
        ...


@dataclass(frozen=True)
class Shares:
    """Weights that sum to one."""

    count: int

    @property
    def size(self) -> int:
        return self.count - 1

    def overrides(self, point: Point) -> Iterator[str]:
        rest = 1.0  # of the stick; ``kept`` is the share of it that the next weights have
        for i, x in enumerate(point):
            kept = (1.0 - x) ** (1.0 / (self.size - i))
            yield f"weights.{i}={_number(rest * (1.0 - kept))}"
            rest *= kept
        yield f"weights.{self.size}={_number(rest)}"

    def start(self, recipe: Recipe) -> Point:
        weights = [source.weight for source in recipe.sources]
        rest, point = sum(weights), []
        for i, weight in enumerate(weights[:-1]):
            kept = (rest - weight) / rest if rest > 0 else 0.0
            point.append(1.0 - max(kept, 0.0) ** (self.size - i))
            rest -= weight
        return point


@dataclass(frozen=True)
class Number:
    """One number from ``low`` to ``high``."""

    key: str
    low: float
    high: float
    whole: bool = False

    @property
    def size(self) -> int:
        return 1

    def overrides(self, point: Point) -> Iterator[str]:
        if self.whole:  # every whole number has the same share of the axis
            count = int(self.high) - int(self.low) + 1
            yield f"{self.key}={int(self.low) + min(int(point[0] * count), count - 1)}"
        else:
            yield f"{self.key}={_number(self.low + point[0] * (self.high - self.low))}"

    def start(self, recipe: Recipe) -> Point:
        value = _current(recipe, self.key)
        if not isinstance(value, int | float):
            return [0.5]
        span = self.high - self.low + self.whole
        return [min(max((value - self.low + 0.5 * self.whole) / span, 0.0), 1.0)]


@dataclass(frozen=True)
class Space:
    """All settings that vary."""

    axes: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return sum(axis.size for axis in self.axes)

    def overrides(self, point: Point) -> tuple[str, ...]:
        settings: list[str] = []
        for axis in self.axes:
            settings += axis.overrides(point[: axis.size])
            point = point[axis.size :]
        return tuple(settings)

    def start(self, recipe: Recipe) -> list[float]:
        point: list[float] = []
        for axis in self.axes:
            point += axis.start(recipe)
        return point


def make_space(recipe: Recipe, vary: Sequence[str]) -> Space:
    """Return the space of ``weights``, ``anchor``, ``params.NAME`` and ``KEY=LOW:HIGH``.

    A parameter without bounds varies within its range. Raises GamMergeError.
    """
    axes: list[Axis] = []
    for text in vary:
        axes += _axes(recipe, text)
    space = Space(tuple(axes))
    if space.size == 0:
        raise GamMergeError(
            "nothing to vary: the recipe has one source; "
            "name a parameter, for instance params.scale=0.5:2"
        )
    return space


def _axes(recipe: Recipe, text: str) -> Iterator[Axis]:
    if "=" in text:
        yield _between(recipe, text)
    elif text == "weights":
        yield from _weights(recipe)
    elif text == "anchor":
        yield Number("anchor", 0, len(recipe.sources) - 1, whole=True)
    elif text.startswith("params."):
        yield _param(recipe, text)
    else:
        raise GamMergeError(
            f"vary must be weights, anchor, params.NAME or KEY=LOW:HIGH, got {text!r}"
        )


def _weights(recipe: Recipe) -> Iterator[Axis]:
    for i, source in enumerate(recipe.sources):
        if not isinstance(source.weight, int | float):
            raise GamMergeError(
                f"weight {i} of the recipe is not a number; "
                "vary a number inside it with KEY=LOW:HIGH"
            )
    if get_method(recipe.method).normalize:
        yield Shares(len(recipe.sources))
    else:
        for i in range(len(recipe.sources)):
            yield Number(f"weights.{i}", 0.0, 1.0)


def _param(recipe: Recipe, key: str) -> Axis:
    param = _declared(recipe, key)
    if param is None or param.type not in ("int", "float"):
        raise GamMergeError(
            f"method {recipe.method} has no numeric parameter "
            f"{key.removeprefix('params.')!r} to vary"
        )
    if param.range is None or not isfinite(param.range.high):
        raise GamMergeError(f"{key} has no upper limit; give {key}=LOW:HIGH")
    return Number(key, param.range.low, param.range.high, whole=param.type == "int")


def _between(recipe: Recipe, text: str) -> Axis:
    key, _, span = text.partition("=")
    try:
        low, high = map(float, span.split(":"))
    except ValueError:
        low = high = 0.0
    if not (isfinite(low) and isfinite(high) and low < high):
        raise GamMergeError(
            f"vary must be KEY=LOW:HIGH with two numbers, the lower first, got {text!r}"
        )
    param = _declared(recipe, key)
    whole = key in ("anchor", "output.rank") or (param is not None and param.type == "int")
    return Number(key, low, high, whole=whole)


def _declared(recipe: Recipe, key: str) -> Param | None:
    """Return the method's declaration of the parameter at a key, if it has one."""
    for param in get_method(recipe.method).params:
        if f"params.{param.name}" == key:
            return param
    return None


def _current(recipe: Recipe, key: str) -> Any:
    """Return the value at a key, else the default of the method, else None."""
    value: Any = recipe.model_dump()
    steps = key.split(".")
    if steps[0] == "params":  # whose names contain dots if they belong to plug-ins
        steps = key.split(".", 1)
    elif steps[0] == "weights":
        steps = ["sources", *steps[1:], "weight"]
    try:
        for step in steps:
            if isinstance(value, list):
                value = value[int(step)]
            else:
                value = value[step]
    except (KeyError, IndexError, TypeError, ValueError):
        param = _declared(recipe, key)
        return None if param is None else param.default
    return value


def _number(value: float) -> str:
    return f"{value:.6g}"
