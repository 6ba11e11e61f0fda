"""Times the whole command over the least that any tool must do: import torch, read, write."""

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import medians, save, table
from benchmarks.shapes import make_adapters

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
    """Print the ratio and write benchmarks/results/process.json."""
    sources = make_adapters(folder, "qwen3-8b", count=count, rank=rank)
    files = [str(source / "adapter_model.safetensors") for source in sources]
    out = folder / "merged"

    def merge() -> None:
        shutil.rmtree(out, ignore_errors=True)
        subprocess.run(
            [sys.executable, "-m", "gam_merge", *map(str, sources), "-o", str(out), "-q"],
            check=True,
        )

    def least() -> None:
        subprocess.run([sys.executable, "-c", _LEAST, *files, str(folder / "copy.bin")], check=True)

    least()  # warms the page cache
    seconds = medians({"gam-merge": merge, "least": least}, repeats)
    row = {
        "case": f"{count} x Qwen3-8B shapes, r = {rank}, bf16",
        "gam-merge (s)": seconds["gam-merge"],
        "import torch + read + write (s)": seconds["least"],
        "ratio": seconds["gam-merge"] / seconds["least"],
    }
    print(table([row]))
    print(save("process", [row]))
