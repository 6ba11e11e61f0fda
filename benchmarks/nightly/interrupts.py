"""Ctrl-C at a random moment: exit code 130 and one word, or done; the old state or the new one."""

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

# As the script that pip installs, but it reports when it begins: what comes before is Python's own.
_COMMAND = "import sys; from gam_cli import main; open(sys.argv.pop(1), 'w').close(); main()"


def interrupts(folder: Path, cases: int) -> Outcome:
    """Interrupt at moments drawn from the run time, with its imports and the end of Python."""
    sources = layers(folder / "sources", modules=50, width=1024, r=32)
    new = contents(gm.merge(sources, out=folder / "new").path)
    whole = min(_seconds(sources, folder / f"timed-{i}") for i in range(2))
    draw, lost, counts = random.Random(0), list[str](), Counter[str]()
    for case in range(cases):
        out = folder / str(case) / "out"
        out.parent.mkdir()
        process = _begin(sources, out)
        time.sleep(moment := draw.uniform(0, whole))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
        state, names = contents(out), os.listdir(out.parent)
        code = process.returncode
        done = (code, errors, state) == (0, "", new)
        interrupted = (code, errors) == (130, "interrupted\n") and state in (None, new)
        if not (done or interrupted):
            lost.append(f"after {moment:.3f} s: exit code {code}: {errors.strip()[-200:]}")
        elif names != ["out"] * (state is not None):
            lost.append(f"after {moment:.3f} s: left {names}")
        counts["done" if done else "interrupted"] += 1
    return Outcome(lost, counted(counts))


def _seconds(sources: list[Path], out: Path) -> float:
    """Return the seconds of a whole run."""
    process = _begin(sources, out)
    begun = time.perf_counter()
    process.communicate()
    return time.perf_counter() - begun


def _begin(sources: list[Path], out: Path) -> subprocess.Popen[str]:
    """Start the command, and return when it begins."""
    ready = out.parent.with_name(f"{out.parent.name}-{out.name}.ready")
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, str(ready), *map(str, sources), "-o", str(out), "-q"],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,
    )
    wait_for(ready)
    return process


def _heed_interrupts() -> None:
    """Restore SIGINT, which processes in the background ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
