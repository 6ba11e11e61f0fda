"""A process that merges a thousand times: memory, descriptors and threads must not grow."""

import json
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
    """Merge over and over in one process, and compare its state early and at the end."""
    file = folder / "state"
    code = in_child(_merge, folder, cases, file)
    if code != 0:
        return Outcome([f"exit code {code}"], "nothing")
    before, after = json.loads(file.read_text())
    growth = after["MB"] / before["MB"] - 1
    lost: list[str] = []
    for name in ("descriptors", "threads"):
        if after[name] > before[name]:
            lost.append(f"{name}: {before[name]}, then {after[name]}")
    if growth > _GROWTH:
        lost.append(f"memory grew by {growth:.1%}")
    return Outcome(lost, f"memory {growth:+.1%}, {after['descriptors']} descriptors as before")


def _merge(folder: Path, cases: int, file: Path) -> None:
    """Write what the process holds after a tenth of the merges, and at the end."""
    sources = layers(folder / "sources", modules=8, width=64)
    states: list[dict[str, float]] = []
    for case in range(cases):
        gm.merge(sources, method=_METHODS[case % len(_METHODS)], out=folder / "out", force=True)
        if case + 1 in (max(cases // 10, 1), cases):
            states.append(_state())
    file.write_text(json.dumps(states))
    sys.exit(0)


def _state() -> dict[str, float]:
    """Return what this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "MB": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }
