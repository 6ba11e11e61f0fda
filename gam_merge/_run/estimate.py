"""What a merge will take, from a rehearsal: the first chunk of each kind of bucket is merged on made-up numbers.

So the estimate knows this machine, the method and its parameters, and reads no tensor.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import prod
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from gam_merge._common.tensors import LazyTensor, MemoryTensor
from gam_merge._lineup.lineup import Plan, PlannedBucket
from gam_merge._read.adapter import LoraModule
from gam_merge._run.engine import run
from gam_merge._run.job import Job
from gam_merge._run.walk import chunks_of

_BYTES_PER_SECOND = 1e9  # of a disk that is neither slow nor in the cache
_COPIES = (
    2  # of the factors of a chunk, counted in float64: as read, in float32, stacked, multiplied
)
_PATIENCE = (
    1.0  # seconds; what was not rehearsed by then is taken to cost as much an entry as what was
)


@dataclass(frozen=True)
class Estimate:
    """Wall seconds of a merge that goes to disk, and bytes of memory beside what the libraries take themselves."""

    seconds: float
    nbytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def estimate(plan: Plan, job: Job) -> Estimate:
    """Rehearse the merge. Takes about a second; other work on the machine shows in it."""
    workers = torch.get_num_threads()
    largest = max(_entries(next(chunks_of(bucket))) for bucket in plan.buckets)
    read = sum(
        _nbytes(factor)
        for adapter in plan.adapters
        for m in adapter.modules.values()
        for factor in (m.a, m.b)
    )
    arithmetic = _rehearse(plan, job) / workers
    return Estimate(
        seconds=max(
            arithmetic, (read + plan.nbytes) / _BYTES_PER_SECOND
        ),  # reads and writes run beside it
        nbytes=workers * _COPIES * 8 * largest,
    )


def _rehearse(plan: Plan, job: Job) -> float:
    """Seconds of arithmetic on one core."""
    kinds: dict[Any, list[PlannedBucket]] = {}
    for bucket in plan.buckets:
        kinds.setdefault((bucket.layout, bucket.shape, bucket.ranks), []).append(bucket)
    total = sum(map(_entries, plan.buckets))
    done, seconds = 0, 0.0
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        start = perf_counter()
        for i, alike in enumerate(
            sorted(kinds.values(), key=lambda kind: -sum(map(_entries, kind)))
        ):
            chunk = _made_up(next(chunks_of(alike[0])))
            for _ in range(
                2 if i == 0 else 1
            ):  # the first call of a library is slower than any other
                begun = perf_counter()
                run(replace(plan, buckets=(chunk,), extras=()), job, _Nowhere(), executor=pool)
            entries = sum(map(_entries, alike))
            seconds += (perf_counter() - begun) * entries / _entries(chunk)
            done += entries
            if perf_counter() - start > _PATIENCE:
                break
    return seconds * total / done


class _Nowhere:
    """A sink that forgets."""

    def write(self, key: str, value: Tensor) -> None:
        """Nothing is kept."""


def _made_up(chunk: PlannedBucket) -> PlannedBucket:
    """The chunk with random factors: the same in all modules of an adapter, others in every adapter."""
    columns = [_random(column) for column in zip(*chunk.members, strict=True)]
    return replace(chunk, members=tuple(zip(*columns, strict=True)))


def _random(members: Sequence[LoraModule]) -> list[LoraModule]:
    a, b = (MemoryTensor(torch.randn(x.shape).to(x.dtype)) for x in (members[0].a, members[0].b))
    return [replace(member, a=a, b=b) for member in members]


def _entries(bucket: PlannedBucket) -> int:
    """Numbers in all factors."""
    return len(bucket.names) * bucket.layout.stack * sum(bucket.shape) * sum(bucket.ranks)


def _nbytes(tensor: LazyTensor) -> int:
    return prod(tensor.shape) * tensor.dtype.itemsize
