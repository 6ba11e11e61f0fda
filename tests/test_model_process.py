"""A model of 600 MB, fused and extracted in processes of their own: how much memory it takes, what a kill leaves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from children import start
from helpers import random_factors, relative, write_adapter
from safetensors import safe_open
from test_atomic import contents
from test_checkpoint import write_checkpoint

import gam_merge as gm

M, N, LAYERS = 4096, 4608, 8  # 75 MB a tensor in float32
PEAK = """
import re, sys, gam_merge as gm
eval(sys.argv[1])
print(re.search("VmHWM:\\s*(.*) kB", open("/proc/self/status").read())[1])  # ru_maxrss would count the parent's too
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two shards of 300 MB, of zeros that take no room on the disk, and an adapter of every tensor."""
    folder = tmp_path_factory.mktemp("large")
    names = [f"layers.{i}.proj" for i in range(LAYERS)]
    shapes = {f"{name}.weight": (M, N) for name in names}
    write_checkpoint(
        folder / "base", [dict([*shapes.items()][part]) for part in (slice(4), slice(4, None))]
    )
    generator = torch.Generator().manual_seed(0)
    factors = {name: random_factors(generator, M, N, 16, torch.float32) for name in names}
    return folder / "base", write_adapter(folder / "adapter", factors)


def peak_bytes(call: str) -> int:
    command = [sys.executable, "-c", PEAK, call]
    return 1024 * int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_memory(model, tmp_path):
    """Two tensors and 300 MB, of which Python with torch takes most."""
    base, adapter = map(str, model)
    fused, extracted = str(tmp_path / "fused"), str(tmp_path / "extracted")
    limit = 2 * 4 * M * N + 300e6
    assert peak_bytes(f"gm.fuse({base!r}, {adapter!r}, {fused!r})") < limit
    assert peak_bytes(f"gm.extract({base!r}, {fused!r}, rank=2, out={extracted!r})") < limit
    tensor = gm.load(adapter).modules["layers.7.proj"].delta(torch.float32)
    (written,) = (tmp_path / "fused").glob("*-00002-*")
    with safe_open(written, "pt") as file:
        assert relative(file.get_tensor("layers.7.proj.weight"), tensor) < 1e-6
    assert gm.load(extracted).rank == 2


def test_killed(model, tmp_path):
    """At any time: the old state, and the next run clears up."""
    small = tmp_path / "small"
    write_checkpoint(small, [{"layers.0.proj.weight": (M, N)}])
    adapter = write_adapter(tmp_path / "a", {"layers.0.proj": (torch.ones(M, 1), torch.ones(1, N))})
    out = tmp_path / "out"
    gm.fuse(small, adapter, out)
    before = contents(out)
    for delay in (0.0, 0.2, 0.6):
        known = set(os.listdir(tmp_path))
        process = start(_fuse, *model, out)
        while not set(os.listdir(tmp_path)) - known:
            assert process.is_alive()
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert contents(out) == before
    gm.fuse(small, adapter, out, force=True)
    assert sorted(os.listdir(tmp_path)) == ["a", "out", "small"]


def _fuse(base: Path, adapter: Path, out: Path) -> None:
    torch.set_num_threads(1)
    gm.fuse(base, adapter, out, force=True)
