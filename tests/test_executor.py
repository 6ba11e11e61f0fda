"""Any executor runs the chunks: the same bytes come out."""

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import helpers
import pytest
import torch

import gam_merge as gm
import gam_merge._run.walk as walking


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """Three adapters of several shapes, enough modules for several chunks."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        f"layers.{i}.{name}": shape
        for i in range(6)
        for name, shape in {"q": (48, 32), "down": (32, 64)}.items()
    }
    paths = []
    for i in range(3):
        factors = {
            name: helpers.random_factors(generator, *shape, 4, torch.float32)
            for name, shape in shapes.items()
        }
        paths.append(
            helpers.write_adapter(
                tmp_path / f"adapter-{i}", factors, base_model_name_or_path="base"
            )
        )
    return paths


def test_threads_and_chunk_size_change_no_byte(sources, tmp_path, monkeypatch):
    gm.merge(sources, out=tmp_path / "default")
    with ThreadPoolExecutor(4) as pool:
        gm.merge(sources, out=tmp_path / "threads", executor=pool)
    monkeypatch.setattr(walking, "_CHUNK_BYTES", 1)
    gm.merge(sources, out=tmp_path / "one-by-one")
    assert (
        helpers.digest(tmp_path / "threads")
        == helpers.digest(tmp_path / "default")
        == helpers.digest(tmp_path / "one-by-one")
    )


_COUNT_THREADS = """
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import torch
import gam_merge as gm
import gam_merge._run.walk as walking

walking._CHUNK_BYTES = 1

def threads():
    return len(list(Path("/proc/self/task").iterdir()))

def adapter(i):
    generator = torch.Generator().manual_seed(i)
    tensors = {}
    for layer in range(4):
        for name, shape in {"lora_A": (160, 256), "lora_B": (256, 160)}.items():
            tensors[f"layers.{layer}.q_proj.{name}.weight"] = torch.randn(shape, generator=generator)
    return gm.from_state_dict(tensors, {"r": 160, "lora_alpha": 160}, name=str(i))

adapters = [adapter(i) for i in range(3)]
x = torch.randn(1000, 1000)
x @ x  # starts the threads of the caller's own kernels
before, size = threads(), torch.get_num_threads()
with ThreadPoolExecutor(2) as pool:
    gm.merge(adapters, method="consensus", rank=160, executor=pool if "given" in sys.argv else None)
    end = time.monotonic() + 10
    while threads() - before > int(sys.argv[2]) and time.monotonic() < end:
        time.sleep(0.01)  # a thread that was joined takes a moment to end
    print(threads() - before, torch.get_num_threads() - size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("executor", ["given", "ours"])
def test_kernels_start_no_threads_on_workers(executor: str) -> None:
    """Neither BLAS nor LAPACK; the caller has as many threads as before."""
    workers = {"given": 2, "ours": 0}[executor]  # ours are gone
    command = [sys.executable, "-c", _COUNT_THREADS, executor, str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert list(map(int, done.stdout.split())) == [workers, 0]


def test_processes_of_a_dask_cluster(sources, tmp_path):
    distributed = pytest.importorskip("distributed")
    gm.merge(sources, out=tmp_path / "here")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    )
    with cluster, distributed.Client(cluster) as client:
        gm.merge(sources, out=tmp_path / "there", executor=client.get_executor())
        workers = len(client.scheduler_info()["workers"])
    assert workers == 2
    assert helpers.digest(tmp_path / "there") == helpers.digest(tmp_path / "here")


def test_a_failure_on_a_worker_process_is_the_same_error(sources, tmp_path):
    weights = sources[1] / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4:] = b"\xff\xff\xff\x7f"  # a NaN in the last tensor
    weights.write_bytes(data)
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        pytest.raises(gm.GamMergeError, match="NaN"),
    ):
        gm.merge(sources, out=tmp_path / "out", executor=pool)
    assert not (tmp_path / "out").exists()
