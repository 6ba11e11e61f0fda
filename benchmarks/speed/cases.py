"""gam-merge over the floor, in one run: seconds, ratios and memory."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gam_merge as gm
from benchmarks.measure import least
from benchmarks.shapes import make_adapters
from benchmarks.speed import floor

# model, adapters, rank, methods
CASES = [
    ("smollm2-135m", 2, 16, ("gam",)),
    ("smollm2-135m", 4, 16, ("gam", "mean")),
    ("smollm2-135m", 16, 16, ("gam",)),
    ("smollm2-135m", 32, 16, ("gam",)),
    ("qwen3-8b", 3, 8, ("gam",)),
    ("qwen3-8b", 3, 16, ("gam", "mean", "consensus", "auto")),
    ("qwen3-8b-72", 3, 16, ("gam",)),
    ("qwen3-8b", 4, 16, ("gam", "mean")),
    ("qwen3-8b", 3, 64, ("gam", "mean", "consensus", "auto")),
    ("moe-128", 3, 16, ("gam",)),
    ("llama3-70b", 3, 16, ("gam",)),
    ("qwen3-8b", 3, 256, ("gam",)),
]

# The peak is VmHWM if Linux has it: ru_maxrss starts at the peak of the process that launched us.
_RSS = """
import resource, sys
from pathlib import Path
import gam_merge as gm
def peak():
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak()
method, rank, out, *sources = sys.argv[1:]
gm.merge(sources, method=method, rank=int(rank), out=out, force=True)
print((peak() - before) / 1024)
"""


def measure(
    folder: Path, model: str, count: int, rank: int, methods: tuple[str, ...], repeats: int
) -> list[dict[str, Any]]:
    """Return a row per method: library calls, taking turns with reading and writing alone.

    Results have the rank of the sources. Seconds are the least of the repeats, as the floor's are.
    """
    sources = make_adapters(folder, model, count=count, rank=rank)
    out, copy = folder / "merged", folder / "copy.bin"
    jobs = {"disk": partial(floor.read_and_write, sources, copy)}
    jobs |= {method: partial(_merge, sources, method, rank, out) for method in methods}
    for job in jobs.values():  # warm the page cache and the libraries
        job()
    seconds = least(jobs, repeats)
    floor_seconds = seconds["disk"] + floor.arithmetic_seconds(model, rank, count)
    return [
        {
            "model": model,
            "N": count,
            "r": rank,
            "method": method,
            "seconds": seconds[method],
            "floor (s)": floor_seconds,
            "over the floor": seconds[method] / floor_seconds,
            "memory above imports (MB)": peak_memory(sources, method, rank, out),
        }
        for method in methods
    ]


def _merge(sources: list[Path], method: str, rank: int, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    gm.merge(sources, method=method, rank=rank, out=out)


def peak_memory(sources: list[Path], method: str, rank: int, out: Path) -> float:
    """Return the megabytes at the peak of a merge above those of a process with the library."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", _RSS, method, str(rank), str(out), *map(str, sources)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
