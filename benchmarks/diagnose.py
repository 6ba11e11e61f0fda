"""Times inspect over reading an adapter, and compare over merging it with others.

Wall seconds are meaningful on an idle machine only; seconds of processor time hardly depend on what
else runs.
"""

import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gam_merge as gm
from benchmarks.measure import medians, save, table
from benchmarks.shapes import make_adapters
from gam_merge._common.tensors import read


def main(folder: Path, *, repeats: int) -> None:
    """Print a table and write benchmarks/results/diagnose.json.

    Three adapters of Qwen3-8B shapes, r = 64.
    """
    sources = make_adapters(folder, "qwen3-8b", count=3, rank=64)
    out = folder / "merged"
    jobs = {
        "read, from the disk": partial(_read, sources[0], cold=True),
        "inspect, from the disk": partial(_inspect, sources[0], cold=True),
        "read": partial(_read, sources[0]),
        "read to float32": partial(_read, sources[0], widen=True),
        "inspect": partial(_inspect, sources[0]),
        "compare": partial(gm.compare, sources),
        "merge (gam)": partial(_merge, sources, "gam", out),
        "merge (mean)": partial(_merge, sources, "mean", out),
    }
    for job in jobs.values():
        job()
    seconds = medians(jobs, repeats)
    processor = {name: _processor_time(job) for name, job in jobs.items()}
    over = {
        "inspect, from the disk": "read, from the disk",
        "inspect": "read",
        "compare": "merge (gam)",
    }
    rows: list[dict[str, Any]] = []
    for name, wall in seconds.items():
        row = {
            "job": name,
            "seconds": wall,
            "over": "",
            "ratio": "",
            "processor seconds": processor[name],
            "ratio of these": "",
        }
        if name in over:
            reference = over[name]
            row["over"] = reference
            row["ratio"] = wall / seconds[reference]
            row["ratio of these"] = processor[name] / processor[reference]
        rows.append(row)
    print(table(rows))
    print(save("diagnose", rows))


def _processor_time(job: Callable[[], object], repeats: int = 2) -> float:
    """Return the processor time of all threads, the least of a few runs."""
    times: list[float] = []
    for _ in range(repeats):
        start = time.process_time()
        job()
        times.append(time.process_time() - start)
    return min(times)


def _read(source: Path, *, cold: bool = False, widen: bool = False) -> None:
    """Read every factor, tensor by tensor, as a merge does."""
    if cold:
        _forget(source)
    for module in gm.load(source).modules.values():
        for factor in (module.a, module.b):
            value = read(factor)
            if widen:
                value.float()


def _inspect(source: Path, *, cold: bool = False) -> None:
    if cold:
        _forget(source)
    gm.inspect(source)


def _forget(source: Path) -> None:
    """Ask the system to drop the file from its cache, so that the next read comes from the disk."""
    descriptor = os.open(source / "adapter_model.safetensors", os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _merge(sources: list[Path], method: str, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    gm.merge(sources, method=method, out=out)
