"""The time and memory of a merge, from a trial run: one chunk of each kind on random data.

So the estimate knows this machine, the method and its parameters, and reads no tensor.
"""

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import prod
from time import perf_counter
from typing import Any

import torch

from gam_merge._common.tensors import LazyTensor, MemoryTensor
from gam_merge._lineup.lineup import Lineup, LineupBucket
from gam_merge._read.adapter import Extra, LoraModule
from gam_merge._run.engine import run
from gam_merge._run.job import Job
from gam_merge._run.walk import chunks_of

_BYTES_PER_SECOND = 1e9  # of a disk that is neither slow nor in the cache
_COPIES = 2  # of a chunk's factors, counted in float64: as read, in float32, stacked, multiplied
_PATIENCE = 1.0  # seconds; kinds that are not tried by then are taken to cost as much per entry


@dataclass(frozen=True)
class Estimate:
    """The expected cost of a merge that goes to disk.

    Attributes:
        seconds: wall time.
        nbytes: memory, besides what the libraries take themselves.

    Example:
        >>> planned = gm.plan(["examples/adapters/addition", "examples/adapters/sorting"])
        >>> sorted(planned.estimate().to_dict())
        ['nbytes', 'seconds']
    """

    seconds: float
    nbytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def estimate(lineup: Lineup, job: Job) -> Estimate:
    """Estimate a merge. Takes about a second; other work on the machine shows in it."""
    workers = torch.get_num_threads()
    chunks = [next(chunks_of(bucket)) for bucket in lineup.buckets]
    nbytes = lineup.nbytes
    for adapter in lineup.adapters:
        for module in adapter.modules.values():
            nbytes += _nbytes(module.a) + _nbytes(module.b)
    arithmetic = _arithmetic_seconds(lineup, job) / workers
    return Estimate(
        seconds=max(arithmetic, nbytes / _BYTES_PER_SECOND),  # read and written meanwhile
        nbytes=workers * _COPIES * 8 * max(map(_entries, chunks)),
    )


def _arithmetic_seconds(lineup: Lineup, job: Job) -> float:
    """Return the seconds of arithmetic on one core, from the largest kinds of buckets on."""
    kinds: dict[Any, list[LineupBucket]] = {}
    for bucket in lineup.buckets:
        kinds.setdefault((bucket.layout, bucket.shape, bucket.ranks), []).append(bucket)
    largest_first = sorted(kinds.values(), key=lambda kind: -sum(map(_entries, kind)))
    done, seconds = 0, 0.0
    with ThreadPoolExecutor(1) as pool:
        start = perf_counter()
        for kind in largest_first:
            chunk = _random_chunk(next(chunks_of(kind[0])))
            trial = replace(lineup, buckets=(chunk,), extras=())
            if done == 0:  # the first call of a library is slower than any other
                _seconds_of(trial, job, pool)
            entries = sum(map(_entries, kind))
            seconds += _seconds_of(trial, job, pool) * entries / _entries(chunk)
            done += entries
            if perf_counter() - start > _PATIENCE:
                break
    return seconds * sum(map(_entries, lineup.buckets)) / done


def _seconds_of(lineup: Lineup, job: Job, pool: Executor) -> float:
    start = perf_counter()
    run(lineup, job, _Nowhere(), executor=pool)
    return perf_counter() - start


class _Nowhere:
    """A sink that forgets."""

    def module(self, module: LoraModule) -> None:
        """Keep nothing."""

    def extra(self, extra: Extra) -> None:
        """Keep nothing."""


def _random_chunk(chunk: LineupBucket) -> LineupBucket:
    """Return a chunk with random factors: equal in all modules of an adapter, unlike between."""
    columns = [_random(column) for column in zip(*chunk.members, strict=True)]
    return replace(chunk, members=tuple(zip(*columns, strict=True)))


def _random(members: Sequence[LoraModule]) -> list[LoraModule]:
    a, b = _random_like(members[0].a), _random_like(members[0].b)
    return [replace(member, a=a, b=b) for member in members]


def _random_like(tensor: LazyTensor) -> MemoryTensor:
    return MemoryTensor(torch.randn(tensor.shape).to(tensor.dtype))


def _entries(bucket: LineupBucket) -> int:
    """Return how many numbers all factors hold."""
    return len(bucket.names) * bucket.layout.stack * sum(bucket.shape) * sum(bucket.ranks)


def _nbytes(tensor: LazyTensor) -> int:
    return prod(tensor.shape) * tensor.dtype.itemsize
