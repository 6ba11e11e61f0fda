"""Figures as text, and tables of it."""

from collections.abc import Iterable, Sequence
from math import isnan

from benchmarks.lab.statistics import Difference, Interval

NONE = "unmeasured"


def text(x: Interval, digits: int = 2) -> str:
    """A mean and half the width of its interval, if it has one."""
    return f"{x.mean:.{digits}f}" + ("" if isnan(x.half) else f" ± {x.half:.{digits}f}")


def judged(d: Difference) -> str:
    """A difference, what it comes to, and p."""
    return f"{text(d.interval)}, {d.verdict} (p {d.p:.2g})"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    found = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in found)
