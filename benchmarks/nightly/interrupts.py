"""Ctrl-C at a random moment of the command: exit code 130 and one word, or done; the old state or the new one."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from helpers import contents, layers
from terminal import environment

import gam_merge as gm
from benchmarks.nightly.trial import Outcome, counted, wait_for

# As the script that pip installs, which says when it begins: what comes before is Python's own.
_COMMAND = "import sys; from gam_cli import main; open(sys.argv.pop(1), 'w').close(); main()"


def interrupts(folder: Path, cases: int) -> Outcome:
    """Moments are drawn from the time that the command takes, its imports and the end of Python included."""
    sources = layers(folder / "sources", modules=50, width=1024, r=32)
    new = contents(gm.merge(sources, out=folder / "new").path)
    whole = min(_seconds(sources, folder / f"timed-{i}") for i in range(2))
    draw, lost, found = random.Random(0), list[str](), Counter[str]()
    for case in range(cases):
        out = folder / str(case) / "out"
        out.parent.mkdir()
        process = _begin(sources, out)
        time.sleep(moment := draw.uniform(0, whole))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
        state, names = contents(out), os.listdir(out.parent)
        done = (process.returncode, errors, state) == (0, "", new)
        interrupted = (process.returncode, errors) == (130, "interrupted\n") and state in (
            None,
            new,
        )
        if not (done or interrupted):
            lost.append(
                f"after {moment:.3f} s: left with {process.returncode}: {errors.strip()[-200:]}"
            )
        elif names != ["out"] * (state is not None):
            lost.append(f"after {moment:.3f} s: left {names}")
        found["done" if done else "interrupted"] += 1
    return Outcome(lost, counted(found))


def _seconds(sources: list[Path], out: Path) -> float:
    """That a whole run takes."""
    process = _begin(sources, out)
    begun = time.perf_counter()
    process.communicate()
    return time.perf_counter() - begun


def _begin(sources: list[Path], out: Path) -> subprocess.Popen[str]:
    """The command, which begins now."""
    ready = out.parent.with_name(f"{out.parent.name}-{out.name}.ready")
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, str(ready), *map(str, sources), "-o", str(out), "-q"],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a run in the background ignores it
    )
    wait_for(ready)
    return process
