"""Killed at any moment: the output is the old one or the new one, and the next merge clears up."""

import os
import random
import signal
import statistics
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from children import start
from helpers import contents, layers, restore

import gam_merge as gm
from benchmarks.nightly.trial import Outcome, counted, wait_for


def kills(folder: Path, cases: int) -> Outcome:
    """Kill at moments drawn from a little more than the time of a merge.

    Every second case has an old output to replace.
    """
    sources = layers(folder / "sources", modules=40, width=256, r=32)
    old = contents(gm.merge(sources[:1], out=folder / "old").path)
    new = contents(gm.merge(sources, out=folder / "new").path)
    whole = 1.2 * statistics.median(_seconds(sources, folder / f"timed-{i}") for i in range(5))
    draw, lost, counts = random.Random(0), list[str](), Counter[str]()
    for case in range(cases):
        out = folder / str(case) / "out"
        before = old if case % 2 else None
        out.parent.mkdir()
        if before:
            restore(out, before)
        process = _begin(sources, out)
        time.sleep(moment := draw.uniform(0, whole))
        process.kill()
        process.join()
        left = sorted(name for name in os.listdir(out.parent) if name != "out")
        state = contents(out)
        gm.merge(sources[:1], out=out, force=True)
        killed = f"killed after {moment:.3f} s"
        if state not in (before, new):
            lost.append(f"{killed}: neither the old state nor the new")
        elif process.exitcode not in (0, -signal.SIGKILL):
            lost.append(f"{killed}: exit code {process.exitcode}")
        elif contents(out) != old or os.listdir(out.parent) != ["out"]:
            lost.append(f"{killed}: the next merge left {os.listdir(out.parent)}")
        if state == new:
            counts["new"] += 1
        else:
            counts["old (while writing)" if left else "old (before)"] += 1
    return Outcome(lost, counted(counts))


def _seconds(sources: list[Path], out: Path) -> float:
    """Return the seconds of a whole merge in a process of its own."""
    process = _begin(sources, out)
    begun = time.perf_counter()
    process.join()
    return time.perf_counter() - begun


def _begin(sources: list[Path], out: Path) -> BaseProcess:
    """Start a process that merges, and return when it begins."""
    ready = out.parent.with_name(f"{out.parent.name}-{out.name}.ready")
    process = start(_merge, sources, out, ready)
    wait_for(ready)
    return process


def _merge(sources: list[Path], out: Path, ready: Path) -> None:
    torch.set_num_threads(1)
    ready.touch()
    gm.merge(sources, out=out, force=True)
