"""Figures as text, and tables of them."""

from collections.abc import Iterable, Sequence
from math import isnan

from benchmarks.lab.statistics import Difference, Interval

NONE = "unmeasured"


def text(x: Interval, digits: int = 2) -> str:
    """Return a mean and half the width of its interval, if it has one."""
    return f"{x.mean:.{digits}f}" + ("" if isnan(x.half) else f" ± {x.half:.{digits}f}")


def judged(d: Difference) -> str:
    """Return a difference, its verdict, and p."""
    return f"{text(d.interval)}, {d.verdict} (p {d.p:.2g})"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    cells = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
