"""Where memory does not suffice for a chunk it is done in halves: the same bytes, or one line that says what to do."""

import ctypes
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from children import in_child
from helpers import adapter, random_factors, stack, write_adapter

import gam_merge as gm
import gam_merge._run.walk as walking
from gam_merge._lineup.lineup import line_up
from gam_merge._run.walk import walk
from gam_merge.rules import Bucket

_M_ARENA_MAX = -8  # malloc.h


def _status(field: str) -> int:
    """Bytes, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _merge_within(sources: list[Path], out: Path, room: int | None, told: Path) -> None:
    """Tell how many bytes the merge took, and the sizes of the chunks that were tried."""
    ctypes.CDLL(None).mallopt(
        _M_ARENA_MAX, 1
    )  # each arena of glibc would reserve 64 MB that it does not use
    torch.set_num_threads(1)
    gm.merge(
        [source.with_name("small") for source in sources], method="ties"
    )  # libraries load, workspaces appear
    before, tried, visit = _status("VmSize"), list[int](), walking._visit_chunk

    def count(reader, function, chunk):
        tried.append(len(chunk.names))
        return visit(reader, function, chunk)

    walking._visit_chunk = count
    if room is not None:
        resource.setrlimit(resource.RLIMIT_AS, (before + room, resource.RLIM_INFINITY))
    try:
        gm.merge(sources, method="ties", out=out)
    except gm.GamMergeError as error:
        sys.exit(str(error))
    told.write_text(f"{_status('VmPeak') - before} {max(tried)} {min(tried)}")


def test_a_process_with_little_memory_gives_the_same_bytes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"0": 40, "1": 40, "2": 40, "small": 1}
    for name, count in sizes.items():
        modules = [f"layers.{i}.q" for i in range(count)]
        write_adapter(
            tmp_path / name,
            {m: random_factors(generator, 512, 512, 16, torch.float32) for m in modules},
        )
    sources = [tmp_path / name for name in "012"]
    assert in_child(_merge_within, sources, tmp_path / "ample", None, tmp_path / "told") == 0
    needed, largest, smallest = map(int, (tmp_path / "told").read_text().split())
    assert largest == smallest == 40
    assert (
        in_child(_merge_within, sources, tmp_path / "scarce", needed // 2, tmp_path / "told") == 0
    )
    _, largest, smallest = map(int, (tmp_path / "told").read_text().split())
    assert smallest < largest == 40
    digests = {
        sha256((tmp_path / x / "adapter_model.safetensors").read_bytes()).digest()
        for x in ("ample", "scarce")
    }
    assert len(digests) == 1


ERRORS = {
    "python": lambda: MemoryError(),
    "cpu": lambda: RuntimeError(
        "[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
    "cuda": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cublas": lambda: RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_module_once_whatever_fits(name: str, threads: int) -> None:
    """Chunks of more than two modules fail."""
    generator = torch.Generator().manual_seed(0)
    shapes = {f"layers.{i}.q": (6, 5, 2) for i in range(7)} | {"head": (4, 3, 1)}
    plan = line_up(_adapters(generator, shapes))

    def visit(bucket: Bucket) -> tuple[str, ...]:
        if len(bucket.names) > 2:
            raise ERRORS[name]()
        return bucket.names

    with ThreadPoolExecutor(threads) as pool:
        found = list(walk(plan, visit, device=torch.device("cpu"), executor=pool))
    assert [name for names in found for name in names] == [
        name for bucket in plan.buckets for name in bucket.names
    ]


def _adapters(
    generator: torch.Generator, shapes: dict[str, tuple[int, int, int]]
) -> list[gm.Adapter]:
    return [
        adapter({name: random_factors(generator, *shape) for name, shape in shapes.items()})
        for _ in range(2)
    ]


def test_one_module_that_does_not_fit_is_an_error() -> None:
    plan = line_up(stack([random_factors(torch.Generator().manual_seed(0), 6, 5, 2)] * 2))

    def visit(bucket: Bucket) -> None:
        raise MemoryError

    with pytest.raises(
        gm.GamMergeError, match="module w: no memory for its 2 deltas of 6 x 5; free some"
    ):
        list(walk(plan, visit, device=torch.device("cpu")))


def test_other_errors_are_not_taken_for_it() -> None:
    plan = line_up(stack([random_factors(torch.Generator().manual_seed(0), 6, 5, 2)] * 2))
    calls = []

    def visit(bucket: Bucket) -> None:
        calls.append(bucket.names)
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault of the program"):
        list(walk(plan, visit, device=torch.device("cpu")))
    assert len(calls) == 1
