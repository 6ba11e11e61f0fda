"""The settings that a search varies, as points of the unit cube.

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
    """A few coordinates that belong together."""

    @property
    def size(self) -> int: ...

    def overrides(self, point: Point) -> Iterator[str]:
        """Yield ``KEY=VALUE`` for a recipe."""
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
        rest = 1.0
        for i in range(self.count):
            left = (1.0 - point[i]) ** (1.0 / (self.size - i)) if i < self.size else 0.0
            yield f"weights.{i}={_number(rest * (1.0 - left))}"
            rest *= left

    def start(self, recipe: Recipe) -> Point:
        weights = [source.weight for source in recipe.sources]
        rest, point = sum(weights), []
        for i, weight in enumerate(weights[:-1]):
            left = (rest - weight) / rest if rest > 0 else 0.0
            point.append(1.0 - max(left, 0.0) ** (self.size - i))
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
    """All axes together."""

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
    """Return the space of some settings of a recipe.

    vary: ``weights``, ``anchor``, ``params.NAME`` within its range, or ``KEY=LOW:HIGH``. Raises
    GamMergeError.
    """
    axes: list[Axis] = []
    for text in vary:
        axes += _axes(recipe, text)
    space = Space(tuple(axes))
    if space.size == 0:
        raise GamMergeError(
            "nothing to vary: the recipe has one source; name a parameter, such as "
            "params.scale=0.5:2"
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
            f"{text} cannot be varied; give weights, anchor, params.NAME or KEY=LOW:HIGH"
        )


def _weights(recipe: Recipe) -> Iterator[Axis]:
    for i, source in enumerate(recipe.sources):
        if not isinstance(source.weight, int | float):
            raise GamMergeError(
                f"weight {i} of the recipe is not a number; vary a number within it by KEY=LOW:HIGH"
            )
    if get_method(recipe.method).normalize:
        yield Shares(len(recipe.sources))
    else:
        yield from (Number(f"weights.{i}", 0.0, 1.0) for i in range(len(recipe.sources)))


def _param(recipe: Recipe, key: str) -> Axis:
    param = _declared(recipe, key)
    if param is None or param.type not in ("int", "float"):
        raise GamMergeError(
            f"method {recipe.method} has no number {key.removeprefix('params.')!r} to vary"
        )
    if param.range is None or not isfinite(param.range.high):
        raise GamMergeError(f"{key} has no upper end; give {key}=LOW:HIGH")
    return Number(key, param.range.low, param.range.high, whole=param.type == "int")


def _between(recipe: Recipe, text: str) -> Axis:
    key, _, span = text.partition("=")
    try:
        low, high = map(float, span.split(":"))
    except ValueError:
        low = high = 0.0
    if not (isfinite(low) and isfinite(high) and low < high):
        raise GamMergeError(f"{text} is not KEY=LOW:HIGH with two numbers, the lower first")
    param = _declared(recipe, key)
    return Number(
        key,
        low,
        high,
        whole=key in ("anchor", "output.rank") or (param is not None and param.type == "int"),
    )


def _declared(recipe: Recipe, key: str) -> Param | None:
    """Return the declaration of a parameter of the method."""
    return next((p for p in get_method(recipe.method).params if f"params.{p.name}" == key), None)


def _current(recipe: Recipe, key: str) -> Any:
    """Return the value at a key, the method's default if the recipe has none, or None."""
    value: Any = recipe.model_dump()
    steps = (
        key.split(".", 1) if key.startswith("params.") else key.split(".")
    )  # plug-ins have dots in their names
    if steps[0] == "weights":
        steps = ["sources", *steps[1:], "weight"]
    try:
        for step in steps:
            value = value[int(step) if isinstance(value, list) else step]
    except (KeyError, IndexError, TypeError, ValueError):
        return param.default if (param := _declared(recipe, key)) else None
    return value


def _number(value: float) -> str:
    return f"{value:.6g}"
