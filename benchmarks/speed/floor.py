"""The floor: the least that any merge must do, measured on this machine.

For N adapters: read every factor and write the result; 2N - 1 Gram blocks and N products with the
output coefficients on each side of every module, as float32 matrix products; 2N - 1 singular value
decompositions of r x r matrices per module (the rotations of N - 1 adapters on two sides, and the
core).
"""

import os
import time
from collections import Counter
from pathlib import Path

import torch

from benchmarks.shapes import MODELS


def read_and_write(sources: list[Path], out: Path) -> None:
    """Read all bytes of the sources, and write as many as the first one holds."""
    files = [source / "adapter_model.safetensors" for source in sources]
    buffer = bytearray(32 << 20)  # bounded: fresh memory would cost page faults
    for file in files:
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    size = files[0].stat().st_size
    with open(out, "wb", buffering=0) as stream:
        for start in range(0, size, len(buffer)):
            stream.write(memoryview(buffer)[: size - start])
        os.fsync(stream.fileno())


def arithmetic_seconds(model: str, rank: int, count: int) -> float:
    """Return the seconds of the least arithmetic at the best rate of this machine, on all cores."""
    heights = Counter(size for _, m, n in MODELS[model] for size in (m, n))
    gemm = 0.0
    for height, number in heights.items():
        x, c = torch.randn(height, rank), torch.randn(rank, rank)
        gram, lift = _best(lambda x=x: x.T @ x), _best(lambda x=x, c=c: x @ c)
        gemm += number * ((2 * count - 1) * gram + count * lift)
    modules = sum(1 for _ in MODELS[model])
    cores = torch.randn(16, rank, rank, dtype=torch.float64)
    svd = _best(lambda: torch.linalg.svd(cores)) / 16 / torch.get_num_threads()
    return gemm + modules * (2 * count - 1) * svd


def _best(job: object, seconds: float = 0.1) -> float:
    """Return the fastest of as many runs as fit into the time."""
    assert callable(job)
    job()
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        job()
        best = min(best, time.perf_counter() - start)
    return best
