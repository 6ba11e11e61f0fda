"""A trial and its outcome."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """The outcome of all cases; ``lost`` has a line for each in which the promise did not hold."""

    lost: Sequence[str]
    found: str


@dataclass(frozen=True)
class Trial:
    """``run(folder, cases)`` tries a number of cases, in an empty folder."""

    name: str
    what: str  # a row of docs/benchmarks.md
    cases: int
    run: Callable[[Path, int], Outcome]


class Unmeasured(Exception):
    """A trial that cannot run here, and why."""


def counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


def wait_for(file: Path) -> None:
    """Wait until another process has made a file."""
    while not file.exists():
        time.sleep(0.002)
