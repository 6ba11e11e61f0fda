"""Times the whole command over the least that any tool must do: import torch, read, write."""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import page
from benchmarks.measure import save, table
from benchmarks.shapes import make_adapters

_EXAMPLES = Path(__file__).parents[1] / "examples/adapters"
_LEAST = """
import os, sys, torch
*sources, out = sys.argv[1:]
buffer = bytearray(os.path.getsize(sources[0]))
for source in sources:
    with open(source, "rb", buffering=0) as file:
        file.readinto(buffer)
with open(out, "wb", buffering=0) as file:
    file.write(buffer)
    os.fsync(file.fileno())
"""


def main(folder: Path, *, rank: int, count: int, repeats: int) -> None:
    """Print the ratios; write benchmarks/results/process.json and the page."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = [_EXAMPLES / name for name in ("addition", "sorting")]
    large = make_adapters(folder, "qwen3-8b", count=count, rank=rank)
    rows = [
        _row("the adapters of examples/adapters/", examples, folder, repeats),
        _row(f"{count} x Qwen3-8B shapes, r = {rank}, bf16", large, folder, repeats),
    ]
    print(table(rows))
    print(save("process", rows))
    page.write_rows("process")


def _row(case: str, sources: Sequence[Path], folder: Path, repeats: int) -> dict[str, object]:
    files = [str(source / "adapter_model.safetensors") for source in sources]
    out = folder / "merged"
    merge = [sys.executable, "-m", "gam_merge", *map(str, sources), "-o", str(out), "-q"]
    least = [sys.executable, "-c", _LEAST, *files, str(folder / "copy.bin")]
    for command in (merge, least):  # fills the page cache, and writes bytecode
        shutil.rmtree(out, ignore_errors=True)
        _seconds(command)
    merged: list[tuple[float, float]] = []
    bare: list[tuple[float, float]] = []
    for _ in range(repeats):
        shutil.rmtree(out, ignore_errors=True)
        merged.append(_seconds(merge))
        bare.append(_seconds(least))
    wall, processor = map(statistics.median, zip(*merged, strict=True))
    least_wall, least_processor = map(statistics.median, zip(*bare, strict=True))
    return {
        "case": case,
        "gam-merge (s)": wall,
        "import torch + read + write (s)": least_wall,
        "ratio": wall / least_wall,
        "ratio of processor seconds": processor / least_processor,
    }


def _seconds(command: Sequence[str]) -> tuple[float, float]:
    """Run a command; return its wall seconds and its processor seconds, which a load blurs less.

    With bytecode, as an installed package has it.
    """
    environment = {**os.environ}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, env=environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
