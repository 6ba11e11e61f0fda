"""Figures as text, and tables of them."""

import re
from collections.abc import Iterable, Sequence
from math import isnan
from pathlib import Path

from benchmarks.lab.statistics import Difference, Interval

NONE = "unmeasured"


def between(page: Path, marker: str, new: str) -> None:
    """Replace what stands between the two comments of a marker in a page."""
    whole = f"<!-- {marker} -->\n\n{new}\n\n<!-- /{marker} -->"
    pattern = re.compile(f"<!-- {marker} -->.*<!-- /{marker} -->", re.DOTALL)
    page.write_text(pattern.sub(lambda _: whole, page.read_text("utf-8")), "utf-8")


def text(x: Interval, digits: int = 2) -> str:
    """Return a mean and half the width of its interval, if it has one."""
    return f"{x.mean:.{digits}f}" + ("" if isnan(x.half) else f" ± {x.half:.{digits}f}")


def judged(d: Difference, digits: int = 2) -> str:
    """Return a difference, its verdict, and p."""
    return f"{text(d.interval, digits)}, {d.verdict} (p {d.p:.2g})"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    cells = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
