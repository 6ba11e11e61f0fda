"""The panels of comparisons and inspections, drawn for paper with matplotlib."""

from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from gam_merge._diagnose.drawing import COLORS, Draw, compose, finish, line
from gam_merge._diagnose.panels import NUMBERED, CosineMatrix, Curves, Heatmap, Panel, Sheet

_TICKS = 12  # layers that are named below a heat map
_ROWS = 24  # types that are named next to it


def draw_sheet(sheet: Sheet) -> Figure:
    """Draw all panels of a sheet together."""
    panels = {name: _drawing_of(panel) for name, panel in sheet.panels.items()}
    return compose(panels, sheet.rows, (12, 9))


def _drawing_of(panel: Panel) -> Draw:
    """Return the function that draws a panel on its axes."""
    match panel:
        case Heatmap():
            return partial(_heatmap, panel)
        case Curves():
            return partial(_curves, panel)
        case CosineMatrix():
            return partial(_cosine_matrix, panel)


def _heatmap(panel: Heatmap, axes: Axes) -> None:
    grid = panel.grid
    image = axes.pcolormesh(np.ma.masked_invalid(grid.values), cmap="viridis", vmin=0.0)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01)
    assert bar.solids is not None
    bar.solids.set_rasterized(False)  # no bitmap in an SVG
    bar.solids.set_edgecolor("face")
    bar.outline.set_visible(False)
    columns, rows = panel.columns(_TICKS), panel.rows(_ROWS)
    axes.set_xticks([i + 0.5 for i, _ in columns], [label for _, label in columns])
    axes.set_yticks([i + 0.5 for i, _ in rows], [label for _, label in rows])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)


def _curves(panel: Curves, axes: Axes) -> None:
    for i, curve in enumerate(panel.curves):
        line(axes, i, curve.x, curve.y, curve.label)
        if curve.mark is not None:
            axes.axvline(curve.mark, color=COLORS[i % len(COLORS)], linewidth=0.8, alpha=0.6)
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if panel.limits is None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.set_xlim(panel.limits)
    finish(axes, panel.title, panel.x, panel.y)


def _cosine_matrix(panel: CosineMatrix, axes: Axes) -> None:
    cosines, size = panel.cosines, len(panel.labels)
    axes.pcolormesh(np.ma.masked_invalid(cosines), cmap="RdBu_r", vmin=-1, vmax=1)
    if size <= NUMBERED:
        for i, j in np.argwhere(np.isfinite(cosines)):
            _number_cell(axes, i, j, cosines[i, j])
    ticks = np.arange(size) + 0.5
    axes.set_yticks(ticks, panel.labels)
    axes.set_xticks(ticks, map(str, range(size)))
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set_title(panel.title, loc="left")


def _number_cell(axes: Axes, i: int, j: int, cosine: float) -> None:
    ink = "white" if abs(cosine) > 0.5 else "#202020"
    x, y, text = j + 0.5, i + 0.5, f"{cosine:.2f}"
    axes.text(x, y, text, ha="center", va="center", color=ink, fontsize=8)
