"""Heat strips: a figure over layers and module types, a row per type, a cell per layer.

Height and colour both show the value, so that strips survive pipes, NO_COLOR and any terminal.
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

_BARS = "▁▂▃▄▅▆▇█"
_ASCII = ".:-=+*#@"
_COLORS = tuple(f"color({code})" for code in (24, 31, 37, 71, 143, 178, 208, 196))
FITTING = 48, 48  # strips on a screen, and bars next to a name in 80 columns


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
            if np.isnan(share):
                text.append(" ")
                continue
            level = min(int(share * len(bars)), len(bars) - 1)
            text.append(bars[level], _COLORS[level])
        yield text


def strips(title: str, grid: Grid) -> Iterator[Table | str]:
    """The grid as a table of strips, after an empty line; nothing for a grid of one layer.

    grid: of at most ``FITTING`` rows and columns.
    """
    if len(grid.layers) < 2 or not np.isfinite(grid.values).any():
        return
    largest = float(np.nanmax(grid.values))
    values = grid.values / largest if largest > 0 else grid.values
    rows = table(title, f"{grid.sizes[1]} layers, bars from 0 to {number(largest)}")
    rows.columns[1].justify = "left"
    for name, cells in zip(grid.short_types, values, strict=True):
        rows.add_row(Name(name), Strip(tuple(cells)))
    yield ""
    yield rows
    if grid.pooled[1] > 1:
        yield f"each bar is the mean of {grid.pooled[1]} layers"
    if grid.pooled[0] > 1:
        yield f"each strip is the mean of {grid.pooled[0]} types, named after the first"
