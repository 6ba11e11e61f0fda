"""Heat strips: a figure over layers and types of module, a row a type, a cell a layer, in any terminal.

Height and colour both tell the value, so that strips survive pipes and NO_COLOR.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from gam_cli._present import Name, number, table
from gam_merge import Grid
from gam_merge._common.names import shortened

_BARS = "▁▂▃▄▅▆▇█"
_ASCII = ".:-=+*#@"
_COLORS = (
    "color(24)",
    "color(31)",
    "color(37)",
    "color(71)",
    "color(143)",
    "color(178)",
    "color(208)",
    "color(196)",
)
_MOST_CELLS = 48  # what 80 columns have room for beside a name


@dataclass(frozen=True)
class Strip:
    """The values of one type, as shares of the largest of all types; NaN leaves a gap."""

    shares: tuple[float, ...]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(len(self.shares), len(self.shares))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bars = _ASCII if options.ascii_only else _BARS
        text = Text(no_wrap=True)
        for share in self.shares:
            level = 0 if np.isnan(share) else min(int(share * len(bars)), len(bars) - 1)
            text.append(" " if np.isnan(share) else bars[level], _COLORS[level])
        yield text


def strips(title: str, grid: Grid) -> Iterator[Table | str]:
    """The grid as a table of strips. Nothing for a grid of one layer."""
    if len(grid.layers) < 2 or not np.isfinite(grid.values).any():
        return
    largest = np.nanmax(grid.values)
    values, wide = _pooled(grid.values)
    names = shortened(grid.types)
    rows = table(title, f"{len(grid.layers)} layers, bars from 0 to {number(float(largest))}")
    rows.columns[1].justify = "left"
    for kind, cells in zip(grid.types, values, strict=True):
        rows.add_row(Name(names[kind]), Strip(tuple(cells / largest if largest > 0 else cells)))
    yield rows
    if wide > 1:
        yield f"a bar is the mean of {wide} layers"


def _pooled(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Means of as many neighbouring layers as it takes to fit into a line, and how many that is."""
    wide = -(-values.shape[1] // _MOST_CELLS)
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % wide)), constant_values=np.nan)
    blocks = padded.reshape(len(values), -1, wide)
    known = np.isfinite(blocks)
    sums = np.where(known, blocks, 0.0).sum(-1)
    counts = known.sum(-1)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0), wide
