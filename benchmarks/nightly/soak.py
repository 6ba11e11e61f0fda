"""A process that merges a thousand times stays as it is: no memory, no descriptor and no thread more."""

import os
import sys
from pathlib import Path

from children import in_child
from helpers import layers

import gam_merge as gm
from benchmarks.nightly.trial import Outcome

_GROWTH = 0.05  # of the resident memory
_METHODS = ("gam", "mean", "ties", "consensus")


def soak(folder: Path, cases: int) -> Outcome:
    told = folder / "told"
    code = in_child(_merge, folder, cases, told)
    if code != 0:
        return Outcome([f"left with {code}"], "nothing")
    before, after = (
        dict(zip(("MB", "descriptors", "threads"), map(float, line.split()), strict=True))
        for line in told.read_text().splitlines()
    )
    growth = after["MB"] / before["MB"] - 1
    lost = [
        f"{name}: {before[name]:g}, then {after[name]:g}"
        for name in ("descriptors", "threads")
        if after[name] > before[name]
    ]
    lost += [f"memory grew by {growth:.1%}"] if growth > _GROWTH else []
    return Outcome(lost, f"memory {growth:+.1%}, {after['descriptors']:g} descriptors as before")


def _merge(folder: Path, cases: int, told: Path) -> None:
    """Tell what the process holds after a tenth of the merges, and at the end."""
    sources = layers(folder / "sources", modules=8, width=64)
    lines = []
    for case in range(cases):
        gm.merge(sources, method=_METHODS[case % len(_METHODS)], out=folder / "out", force=True)
        if case + 1 in (max(cases // 10, 1), cases):
            lines.append(
                f"{_megabytes()} {len(os.listdir('/proc/self/fd'))} {len(os.listdir('/proc/self/task'))}"
            )
    told.write_text("\n".join(lines))
    sys.exit(0)


def _megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
