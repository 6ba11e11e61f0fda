"""Panels as pictures for a page: rectangles, lines and labels, which a template writes as SVG.

Text and axes take the colour of the page around them, so that pictures suit light and dark alike.
Labels are in a fixed-width font, whose widths need not be measured. ``figures`` draws the same
panels for paper, with matplotlib, which takes far longer.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.ticker import Locator, LogLocator, MaxNLocator
from rich.cells import cell_len

from gam_merge._common.names import clipped
from gam_merge._diagnose.drawing import COLORS
from gam_merge._diagnose.measures import Array
from gam_merge._diagnose.panels import NUMBERED, CosineMatrix, Curve, Curves, Heatmap, Panel, Tick

# Pixels.
_WIDE, _NARROW = 1000.0, 480.0
_TITLE = 28.0  # above the axes
_FIELD = 220.0  # height of the axes of curves
_ROW, _LOWEST, _HIGHEST = 24.0, 120.0, 384.0  # of heat maps: a type; all types
_CELL = 44.0  # the most that a cell of a matrix is wide
_LINE = 16.0  # of text
_CHARACTER = 6.8  # the widest that a fixed-width font of 11 pixels is
_GAP = 6.0
_BAR, _SHADES = 14.0, 32  # width and number of the colours next to a heat map

_DASHES = ("none", "7 3", "1.5 3", "8 3 1.5 3")
_THIN, _THICK = 0.8, 1.8  # lines


@dataclass(frozen=True)
class Rect:
    """A coloured rectangle."""

    x: float
    y: float
    width: float
    height: float
    color: str


@dataclass(frozen=True)
class Stroke:
    """A line through points."""

    points: Sequence[tuple[float, float]]
    color: str = "currentColor"
    width: float = _THIN
    dash: str = "none"


@dataclass(frozen=True)
class Label:
    """A text whose start, middle or end is at a point of its base line."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    color: str = "currentColor"
    turned: bool = False  # reads upwards


@dataclass
class Picture:
    """What an SVG shows."""

    title: str
    width: float
    height: float
    rects: list[Rect] = field(default_factory=list[Rect])
    strokes: list[Stroke] = field(default_factory=list[Stroke])
    labels: list[Label] = field(default_factory=list[Label])


@dataclass(frozen=True)
class _Scale:
    """Numbers from ``low`` to ``high`` become pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False  # ticks at whole numbers alone

    def __call__(self, numbers: Any) -> Any:
        warp = np.log10 if self.log else np.asarray
        low, high = warp(self.low), warp(self.high)
        return self.start + (warp(numbers) - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Return the pixels of round numbers, and the numbers."""
        if self.log:
            locator: Locator = LogLocator(subs=(1.0, 2.0, 5.0))
        else:
            locator = MaxNLocator(6, integer=self.whole)
        slack = 1e-9 * (self.high - self.low)
        numbers = locator.tick_values(self.low, self.high)
        within = [x for x in numbers if self.low - slack <= x <= self.high + slack]
        return [(float(self(x)), f"{x:.6g}") for x in within]


def picture_of(panel: Panel) -> Picture:
    """Return the picture of a panel."""
    match panel:
        case Heatmap():
            return _heatmap(panel)
        case Curves():
            return _curves(panel)
        case CosineMatrix():
            return _cosine_matrix(panel)


def _heatmap(panel: Heatmap) -> Picture:
    types, layers = panel.grid.values.shape
    high = min(max(types * _ROW, _LOWEST), _HIGHEST)
    bottom = _TITLE + high
    top = float(np.nanmax(panel.grid.values, initial=0.0)) or 1.0
    marks = _Scale(0.0, top, bottom, _TITLE).ticks()
    rows = panel.rows(int(high / _LINE))
    left = _widest(text for _, text in rows) + _GAP
    right = _WIDE - _widest(text for _, text in marks) - _BAR - 3 * _GAP
    picture = Picture(panel.title, _WIDE, bottom + 2 * _LINE + _GAP)

    x, y = _edges(left, right, layers), _edges(_TITLE, bottom, types)
    picture.rects += _cells(panel.grid.values / top, "viridis", x, y)
    for row, text in rows:
        middle = (y[row] + y[row + 1]) / 2
        picture.labels.append(Label(left - _GAP, middle + 4, text, "end"))
    for column, text in _columns(panel, right - left):
        middle = (x[column] + x[column + 1]) / 2
        picture.labels.append(Label(middle, bottom + _LINE, text, "middle"))
    caption = bottom + 2 * _LINE
    picture.labels.append(Label((left + right) / 2, caption, panel.x, "middle"))
    if panel.y:
        picture.labels.append(Label(0, caption, panel.y))

    shades = np.linspace(1, 0, _SHADES)[:, None]  # (shades, 1)
    bar = _edges(right + _GAP, right + _GAP + _BAR, 1)
    picture.rects += _cells(shades, "viridis", bar, _edges(_TITLE, bottom, _SHADES))
    for place, text in marks:
        picture.labels.append(Label(bar[1] + _GAP, place + 4, text))
    return picture


def _columns(panel: Heatmap, width: float) -> list[Tick]:
    """Return the layers that are named below a heat map, so few that their names do not touch."""
    most = 12
    ticks = panel.columns(most)
    while most > 1 and len(ticks) * (_widest(text for _, text in ticks) + _GAP) > width:
        most -= 1
        ticks = panel.columns(most)
    return ticks


def _curves(panel: Curves) -> Picture:
    bottom = _TITLE + _FIELD
    y = _Scale(*_heights(panel), bottom, _TITLE, panel.log)
    left = _widest(text for _, text in y.ticks()) + _LINE + 2 * _GAP
    ends = panel.limits or _widths(panel)
    x = _Scale(*ends, left, _NARROW - _LINE, whole=panel.limits is None)
    picture = Picture(panel.title, _NARROW, bottom + 2 * _LINE + _GAP)

    for i, curve in enumerate(panel.curves):
        color = COLORS[i % len(COLORS)]
        if curve.mark is not None:
            place = float(x(curve.mark))
            picture.strokes.append(Stroke([(place, _TITLE), (place, bottom)], color))
        points = _points(curve, x, y)
        dash = _DASHES[i // len(COLORS) % len(_DASHES)]
        picture.strokes.append(Stroke(points, color, _THICK, dash))
        picture.height += _LINE
        row = picture.height - _GAP
        picture.strokes.append(Stroke([(left, row - 4), (left + 24, row - 4)], color, _THICK, dash))
        picture.labels.append(Label(left + 32, row, clipped(curve.label)))

    picture.strokes.append(Stroke([(left, _TITLE), (left, bottom), (x.end, bottom)]))
    for place, text in x.ticks():
        picture.strokes.append(Stroke([(place, bottom), (place, bottom + 4)]))
        picture.labels.append(Label(place, bottom + _LINE, text, "middle"))
    for place, text in y.ticks():
        picture.strokes.append(Stroke([(left - 4, place), (left, place)]))
        picture.labels.append(Label(left - _GAP, place + 4, text, "end"))
    caption = bottom + 2 * _LINE
    picture.labels.append(Label((left + x.end) / 2, caption, panel.x, "middle"))
    middle = (_TITLE + bottom) / 2
    picture.labels.append(Label(_LINE - 4, middle, panel.y, "middle", turned=True))
    return picture


def _widths(panel: Curves) -> tuple[float, float]:
    """Return the first and the last of the numbers that curves count."""
    low = min((float(curve.x.min()) for curve in panel.curves), default=0.0)
    high = max((float(curve.x.max()) for curve in panel.curves), default=1.0)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _heights(panel: Curves) -> tuple[float, float]:
    """Return the ends of the axis of heights, with some room."""
    heights = np.concatenate([np.empty(0), *(curve.y for curve in panel.curves)])
    if panel.log:
        heights = heights[heights > 0]
    low, high = float(heights.min(initial=np.inf)), float(heights.max(initial=-np.inf))
    if low > high:
        return 0.1, 1.0
    if panel.log:
        return low / 1.2, high * 1.2
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def _points(curve: Curve, x: _Scale, y: _Scale) -> list[tuple[float, float]]:
    """Return where a curve passes; a logarithm shows no zeros."""
    shown = curve.y > 0 if y.log else np.full(len(curve.y), True)
    return list(zip(x(curve.x[shown]), y(curve.y[shown]), strict=True))


def _cosine_matrix(panel: CosineMatrix) -> Picture:
    size = len(panel.labels)
    left = _widest("\n".join(panel.labels).split("\n")) + _GAP
    edge = min(_CELL * size, _NARROW - left - _GAP)
    picture = Picture(panel.title, _NARROW, _TITLE + edge + _LINE + _GAP)

    x, y = _edges(left, left + edge, size), _edges(_TITLE, _TITLE + edge, size)
    picture.rects += _cells((panel.cosines + 1) / 2, "RdBu_r", x, y)
    cell = edge / size
    for i, label in enumerate(panel.labels):
        lines = label.split("\n") if cell >= 2 * _LINE else [label.split("\n")[0]]
        first = y[i] + cell / 2 + 4 - (len(lines) - 1) * _LINE / 2
        for k, line in enumerate(lines):
            picture.labels.append(Label(left - _GAP, first + k * _LINE, line, "end"))
        bottom = _TITLE + edge + _LINE
        picture.labels.append(Label(x[i] + cell / 2, bottom, str(i), "middle"))
    if size <= NUMBERED:
        for i, j in np.argwhere(np.isfinite(panel.cosines)):
            cosine = panel.cosines[i, j]
            ink = "#ffffff" if abs(cosine) > 0.5 else "#202020"
            place = x[j] + cell / 2, y[i] + cell / 2 + 4
            picture.labels.append(Label(*place, f"{cosine:.2f}", "middle", ink))
    return picture


def _cells(shares: Array, colors: str, x: Array, y: Array) -> Iterator[Rect]:
    """Yield a grid of coloured cells, those without a number left out.

    shares: (rows, columns), in [0, 1]. x, y: the edges of the columns and of the rows.
    """
    rgba = colormaps[colors](np.nan_to_num(shares))  # (rows, columns, 4)
    shades = np.round(255 * rgba).astype(int)
    for i, j in np.argwhere(np.isfinite(shares)):
        red, green, blue, _ = shades[i, j]
        color = f"#{red:02x}{green:02x}{blue:02x}"
        yield Rect(x[j], y[i], x[j + 1] - x[j], y[i + 1] - y[i], color)


def _edges(start: float, end: float, count: int) -> Array:
    """Return the edges of cells, at whole pixels, so that no gap is seen between two."""
    return np.round(np.linspace(start, end, count + 1))


def _widest(texts: Iterable[str]) -> float:
    """Return the width of the widest of some labels."""
    return _CHARACTER * max(map(cell_len, texts), default=0)
