"""One walk over the modules of a plan, for all who read deltas: bucket by bucket, in pieces that fit into memory.

Tensor legend: ``N`` adapters, ``L`` modules at a time, ``m`` out, ``n`` in, ``r`` rank.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from gam_kernels import Delta, factored_delta, stacked_gram
from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import LazyTensor, read
from gam_merge._deltas.bucket import Bucket, Factors, diagonal_blocks
from gam_merge._deltas.rows import RowScaling
from gam_merge._lineup.lineup import Lineup, LineupBucket
from gam_merge._read.adapter import LoraModule
from gam_merge._run.dora import rescale

_LARGEST = 1e60  # of a delta in orthonormal coordinates: its fourth power is finite. Trained ones are below 1e3
# One product of all columns of all adapters runs at full speed, the few that are needed at a part of it. Measured: up
# to this many columns times adapters the one is faster; above that, what nobody needs costs more.
_JOINT = 1024
_CHUNK_BYTES = (
    40 << 20
)  # of factors in float64 that are worked on at a time: calls are few beside arithmetic
# What torch says, as a RuntimeError, of a processor, a GPU, and the workspace of a GPU's BLAS.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")

T = TypeVar("T")
Shares = Callable[[Sequence[str], Sequence[int]], Tensor]  # modules, adapters -> (L, N) float64


@dataclass(frozen=True)
class Reader:
    """What it takes to read a chunk. Small: it travels to every worker."""

    sources: tuple[str, ...]
    compute_dtype: torch.dtype
    device: torch.device
    anchor: int = 0  # passed on to the buckets
    labels: tuple[str, ...] = ()  # likewise
    factors: bool = False  # whether buckets keep the factors as read
    shares: Shares | None = None  # of the adapters, where deltas depend on them: those of DoRA


def walk(
    lineup: Lineup,
    visit: Callable[[Bucket], T],
    *,
    device: torch.device,
    anchor: int = 0,
    factors: bool = False,
    shares: Shares | None = None,
    executor: Executor | None = None,
) -> Generator[T]:
    """``visit`` every module of the plan once, bucket by bucket: its results, in the order of the plan.

    Chunks are read and visited on the executor while the caller deals with finished ones, so reads, arithmetic and
    writes overlap. At most a few are in flight: memory does not grow with the model. ``visit`` should give back
    little, and must be picklable if the executor crosses processes. With ``factors`` buckets keep them as read.
    ``shares`` tells what part each adapter has in modules, for deltas that depend on it.

    Raises GamMergeError for a file that cannot be read, and for numbers that are not finite or too large to square.
    """
    sources = tuple(adapter.source for adapter in lineup.adapters)
    reader = Reader(sources, lineup.compute_dtype, device, anchor, lineup.labels, factors, shares)
    for results in walk_chunks(lineup, partial(_visit_bucket, reader, visit), executor):
        yield from results


def walk_chunks(
    lineup: Lineup, task: Callable[[LineupBucket], list[T]], executor: Executor | None = None
) -> Iterator[list[T]]:
    """The same for a ``task`` that reads its modules itself: its results, in the order of the plan."""
    chunks = (chunk for bucket in lineup.buckets for chunk in chunks_of(bucket))
    with _executor(executor) as (pool, window):
        yield from _ordered(pool, window, partial(_in_memory, task), chunks)


def _in_memory(task: Callable[[LineupBucket], list[T]], chunk: LineupBucket) -> list[T]:
    """Do the task, in halves where there is no memory for the whole chunk. Runs on a worker."""
    try:
        return task(chunk)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(
            text in str(error) for text in _OUT_OF_MEMORY
        ):
            raise
    # Here the error is gone, and what its frames held.
    count = len(chunk.names)
    if count == 1:
        m, n = chunk.shape
        raise GamMergeError(
            f"module {chunk.names[0]}: no memory for its {len(chunk.adapters)} deltas of {m} x {n}; "
            "free some, or take fewer threads (OMP_NUM_THREADS=1)"
        )
    halves = (slice(0, count // 2), slice(count // 2, count))
    return [result for half in halves for result in _in_memory(task, _part(chunk, half))]


@torch.no_grad()
def _visit_bucket(reader: Reader, visit: Callable[[Bucket], T], chunk: LineupBucket) -> list[T]:
    """Runs on a worker."""
    return [visit(bucket) for bucket in _by_rank(reader, chunk, _read_all(reader, chunk))]


@contextmanager
def _executor(given: Executor | None) -> Iterator[tuple[Executor, int]]:
    """The executor and how many chunks it may hold. Our own: one thread a core, each with single-threaded kernels,
    since a chunk is too small to be shared out within one operation."""
    if given is not None:
        yield given, 2 * (os.cpu_count() or 1)
        return
    workers = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # of the caller: its idle OpenMP threads would spin on the cores that the workers need
    try:
        with ThreadPoolExecutor(
            workers, "gam-merge", initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool, workers + 1
    finally:
        torch.set_num_threads(workers)


def _ordered(
    pool: Executor, window: int, task: Callable[[LineupBucket], T], chunks: Iterator[LineupBucket]
) -> Iterator[T]:
    """Results in the order of the chunks, at most ``window`` of them under way. The first failure cancels the rest."""
    waiting: deque[Future[T]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(task, chunk))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def chunks_of(bucket: LineupBucket) -> Iterator[LineupBucket]:
    """Pieces of a bucket that fit into the working memory."""
    size = max(1, _CHUNK_BYTES // (8 * bucket.layout.stack * sum(bucket.shape) * sum(bucket.ranks)))
    for start in range(0, len(bucket.names), size):
        yield _part(bucket, slice(start, start + size))


def _part(bucket: LineupBucket, part: slice) -> LineupBucket:
    return replace(
        bucket, names=bucket.names[part], members=bucket.members[part], bases=bucket.bases[part]
    )


class _Chunk(NamedTuple):
    """What has been read of a chunk."""

    deltas: Sequence[Delta]  # of each adapter
    rows: RowScaling | None  # how DoRA scales rows of the base
    grams: tuple[Tensor, Tensor] | None  # of all factors side by side, (L, R, R) float64


def read_delta(members: Sequence[LoraModule], dtype: torch.dtype, device: torch.device) -> Delta:
    """The deltas of one adapter. ``members`` have one layout."""
    return _delta(members, *_read_factors(members, dtype, device))


def _read_factors(
    members: Sequence[LoraModule], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """B (L, m, r) and A (L, r, n) of one adapter, one a matrix."""
    b, a = (
        _stack([m.b for m in members], dtype, device),
        _stack([m.a for m in members], dtype, device),
    )
    return members[0].layout.split(b, a)


def _delta(
    members: Sequence[LoraModule], b: Tensor, a: Tensor, grams: tuple[Tensor, Tensor] | None = None
) -> Delta:
    """The scale is folded in here and nowhere else."""
    scale = torch.tensor([member.scale for member in members], dtype=torch.float64, device=b.device)
    return factored_delta(
        b.contiguous(), a.mT, scale.repeat_interleave(members[0].layout.stack), grams
    )


def _stack(tensors: Sequence[LazyTensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Read tensors of one shape into one: (L, *shape). They travel as they are stored, and pinned on the way to a GPU:
    copies run beside kernels."""
    pinned = device.type == "cuda"
    stored = {tensor.dtype for tensor in tensors}
    out = torch.empty(
        len(tensors),
        *tensors[0].shape,
        dtype=stored.pop() if len(stored) == 1 else dtype,
        pin_memory=pinned,
    )
    for slot, tensor in zip(out, tensors, strict=True):
        if tensor.dtype == out.dtype:
            tensor.read_into(slot)
        else:
            slot.copy_(read(tensor))
    return out.to(device, non_blocking=pinned).to(dtype)


def _read_all(reader: Reader, chunk: LineupBucket) -> _Chunk:
    """Read the deltas of each adapter of a chunk. Non-finite ones are refused."""
    columns = list(zip(*chunk.members, strict=True))
    factors, rows = (
        [_read_factors(members, reader.compute_dtype, reader.device) for members in columns],
        None,
    )
    if chunk.bases:
        assert reader.shares is not None
        shares = reader.shares(chunk.names, chunk.adapters).to(reader.device)
        rescaled, rows = rescale(chunk.names, chunk.bases, columns, factors, shares)
        factors = [(b, a) for b, (_, a) in zip(rescaled, factors, strict=True)]
    grams: tuple[Tensor, Tensor] | None = None
    own: Sequence[tuple[Tensor, Tensor] | None] = [None] * len(factors)
    if reader.compute_dtype != torch.float64 and sum(chunk.ranks) * len(chunk.ranks) <= _JOINT:
        grams = stacked_gram([b for b, _ in factors]), stacked_gram([a.mT for _, a in factors])
        own = list(zip(*(diagonal_blocks(g, chunk.ranks) for g in grams), strict=True))
    deltas: list[Delta] = []
    for i, members, (b, a), blocks in zip(chunk.adapters, columns, factors, own, strict=True):
        delta = _delta(members, b, a, blocks)
        sound = is_sound(delta)
        if not sound.all():
            j = int(sound.int().argmin())
            name, factor = chunk.names[j // chunk.layout.stack], broken_factor(delta, j)
            problem = f"numbers above {_LARGEST:g}" if factor == "the product" else "NaN or Inf"
            raise GamMergeError(
                f"{reader.sources[i]}: module {name} has {problem} in {factor}; leave this adapter out"
            )
        deltas.append(delta)
    return _Chunk(deltas, rows, grams)


def is_sound(delta: Delta) -> Tensor:
    """Which modules are finite, and small enough to be squared and squared again: (L,)."""
    return delta.core.abs().amax((1, 2)) <= _LARGEST  # NaN compares false


def broken_factor(delta: Delta, j: int) -> str:
    """The factor of module ``j``, which is not sound, that holds NaN or Inf; the product if that alone is too large."""
    named = {"lora_B": delta.b[j], "lora_A": delta.a[j]}
    return next(
        (name for name, factor in named.items() if not factor.isfinite().all()), "the product"
    )


def _by_rank(reader: Reader, chunk: LineupBucket, found: _Chunk) -> Iterator[Bucket]:
    """Split a chunk into buckets of equal numerical ranks, without the adapters whose delta is zero there."""
    deltas, rows, grams = found
    ranks = torch.stack([delta.rank for delta in deltas], -1).tolist()  # (L, N)
    wide = torch.stack([delta.wide for delta in deltas], -1).any(-1).tolist()  # (L,)
    groups: dict[tuple[bool, tuple[int, ...]], list[int]] = {}
    for j, key in enumerate(zip(wide, map(tuple, ranks), strict=True)):
        groups.setdefault(key, []).append(j)
    for (is_wide, group), members in groups.items():
        index = torch.tensor(members, device=deltas[0].core.device)
        present = [i for i, rank in enumerate(group) if rank]
        stack = chunk.layout.stack
        yield Bucket(
            names=tuple(chunk.names[j // stack] for j in members),
            indices=tuple(j % stack for j in members) if stack > 1 else (),
            output_rank=chunk.output_rank,
            rows=rows and rows.select(index),
            shape=chunk.shape,
            adapters=tuple(chunk.adapters[i] for i in present),
            deltas=tuple(deltas[i].select(index, rank=group[i], wide=is_wide) for i in present),
            anchor=reader.anchor,
            labels=tuple(reader.labels[chunk.adapters[i]] for i in present),
            factors=tuple(_factors(chunk, i, deltas[i], members) for i in present)
            if reader.factors
            else (),
            grams=None if grams is None or is_wide else _some(grams, chunk.ranks, present, index),
            fell_back=is_wide and reader.compute_dtype != torch.float64,
        )


def _some(
    grams: tuple[Tensor, Tensor], ranks: Sequence[int], present: list[int], index: Tensor
) -> tuple[Tensor, Tensor]:
    """The stacked Gram matrices of some modules and adapters."""
    if len(present) == len(ranks):
        left, right = (g[index] for g in grams)
    else:
        columns = torch.cat(
            [torch.arange(sum(ranks[:i]), sum(ranks[: i + 1])) for i in present]
        ).to(index.device)
        left, right = (g[index[:, None, None], columns[:, None], columns] for g in grams)
    return left, right


def _factors(chunk: LineupBucket, i: int, delta: Delta, members: list[int]) -> Factors:
    """The factors of one adapter as they were read, of some modules of the chunk."""
    scales = [chunk.members[j // chunk.layout.stack][i].scale for j in members]
    scale = torch.tensor(scales, dtype=torch.float64, device=delta.core.device)
    return Factors(delta.b[members], delta.a[members], scale)
