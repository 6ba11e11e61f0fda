"""What a trial is, and what it gives back."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What was found over all cases; ``lost`` has a line for each in which the promise did not hold."""

    lost: Sequence[str]
    found: str


@dataclass(frozen=True)
class Trial:
    """``run(folder, cases)`` tries so many cases, with an empty folder of its own to work in."""

    name: str
    what: str  # a row of the README
    cases: int
    run: Callable[[Path, int], Outcome]


class Unmeasured(Exception):
    """A trial that cannot run here, and why."""


def counted(found: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(found.items()))


def wait_for(file: Path) -> None:
    """Until another process has made it."""
    while not file.exists():
        time.sleep(0.002)
