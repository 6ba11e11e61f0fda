"""Killed at any moment: the output is the old one or the new one, and the next merge clears up."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import torch
from children import start
from helpers import contents, layers, restore

import gam_merge as gm
from benchmarks.nightly.trial import Outcome, counted


def kills(folder: Path, cases: int) -> Outcome:
    """Every other case has an old output to replace. Moments are drawn from the time that a whole merge takes."""
    sources = layers(folder / "sources", modules=100, width=1024, r=64)  # 50 MB each: writing takes a while
    old, new = (
        contents(gm.merge(sources[:1], out=folder / "old").path),
        contents(gm.merge(sources, out=folder / "new").path),
    )
    draw, lost, found = random.Random(0), list[str](), Counter[str]()
    begun = time.perf_counter()
    start(_merge, sources, folder / "timed").join()
    whole = time.perf_counter() - begun
    for case in range(cases):
        out = folder / str(case) / "out"
        before = old if case % 2 else None
        out.parent.mkdir()
        if before:
            restore(out, before)
        process = start(_merge, sources, out)
        time.sleep(moment := draw.uniform(0, whole))
        process.kill()
        process.join()
        left = sorted(name for name in os.listdir(out.parent) if name != "out")
        state = contents(out)
        _merge(sources[:1], out)
        if state not in (before, new):
            lost.append(f"killed after {moment:.3f} s: neither the old state nor the new")
        if process.exitcode not in (0, -signal.SIGKILL):
            lost.append(f"killed after {moment:.3f} s: left with {process.exitcode}")
        if contents(out) != old or os.listdir(out.parent) != ["out"]:
            lost.append(f"killed after {moment:.3f} s: the next merge left {os.listdir(out.parent)}")
        found["new" if state == new else "old (while writing)" if left else "old (before)"] += 1
    return Outcome(lost, counted(found))


def _seconds(sources: list[Path], out: Path) -> float:
    """That a whole merge takes in a process of its own."""
    begun = time.perf_counter()
    start(_merge, sources, out).join()
    return time.perf_counter() - begun


def _merge(sources: list[Path], out: Path) -> None:
    torch.set_num_threads(1)
    gm.merge(sources, out=out, force=True)
