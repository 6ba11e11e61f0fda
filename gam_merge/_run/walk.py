"""One walk over the modules of a lineup, for all verbs that read deltas.

Bucket by bucket, in chunks that fit into memory, on any executor.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._deltas.bucket import Bucket
from gam_merge._lineup.lineup import Lineup, LineupBucket
from gam_merge._run.reader import Reader, Shares

# Bytes of factors in float64 that are worked on at a time: calls cost little next to arithmetic.
_CHUNK_BYTES = 40 << 20
# Parts of torch's RuntimeError on a processor, on a GPU, and for the workspace of a GPU's BLAS.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")

T = TypeVar("T")
Task = Callable[[LineupBucket], list[T]]


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
    """Visit every module of a lineup once, bucket by bucket.

    Chunks are read and visited on the executor while the caller deals with finished ones, so
    reads, arithmetic and writes overlap. At most a few are in flight: memory does not grow with
    the model.

    visit: should return little, and must be picklable if the executor crosses processes. factors:
    buckets keep the factors as they were read. shares: the share of adapters in modules, for
    deltas that depend on it.

    Yields the results in the order of the lineup. Raises GamMergeError for a file that cannot be
    read, and for numbers that are not finite or too large to square.
    """
    sources = tuple(adapter.source for adapter in lineup.adapters)
    reader = Reader(sources, lineup.compute_dtype, device, anchor, lineup.labels, factors, shares)
    for results in walk_chunks(lineup, partial(_visit_chunk, reader, visit), executor):
        yield from results


def walk_chunks(
    lineup: Lineup, task: Task[T], executor: Executor | None = None
) -> Iterator[list[T]]:
    """Walk with a ``task`` that reads its modules itself: its results, in the same order."""
    with _executor(executor) as (pool, window):
        yield from _ordered(pool, window, partial(_on_worker, task), _all_chunks(lineup))


@torch.no_grad()
def _visit_chunk(reader: Reader, visit: Callable[[Bucket], T], chunk: LineupBucket) -> list[T]:
    """Read a chunk and visit its buckets. Runs on a worker."""
    return [visit(bucket) for bucket in reader.buckets(chunk)]


def _on_worker(task: Task[T], chunk: LineupBucket) -> list[T]:
    """Do the task on the thread that calls, whatever the executor: others have cores of their own.

    A chunk is too small to be shared out within one operation.
    """
    with _one_thread():
        return _in_memory(task, chunk)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the kernels that this thread calls, BLAS and LAPACK among them, from starting others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_memory(task: Task[T], chunk: LineupBucket) -> list[T]:
    """Do the task, in halves where there is no memory for the whole chunk."""
    try:
        return task(chunk)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    # Here the error is gone, and what its frames held.
    count = len(chunk.names)
    if count == 1:
        m, n = chunk.shape
        raise GamMergeError(
            f"module {chunk.names[0]}: no memory for its {len(chunk.adapters)} deltas of {m} x {n}"
            "; free some, or use fewer threads (OMP_NUM_THREADS=1)"
        )
    half = count // 2
    first, second = chunk.select(range(half)), chunk.select(range(half, count))
    return [*_in_memory(task, first), *_in_memory(task, second)]


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or any(part in text for part in _OUT_OF_MEMORY)


@contextmanager
def _executor(given: Executor | None) -> Iterator[tuple[Executor, int]]:
    """Open the executor, with the number of chunks that it may hold.

    Ours has one thread per core.
    """
    workers = torch.get_num_threads()
    try:
        if given is not None:
            yield given, 2 * (os.cpu_count() or 1)
            return
        # For the caller: its idle OpenMP threads would spin on the cores that the workers need.
        torch.set_num_threads(1)
        with ThreadPoolExecutor(workers, "gam-merge") as pool:
            yield pool, workers + 1
    finally:
        torch.set_num_threads(workers)  # of threads to come, too, which take the last that was set


def _ordered(
    pool: Executor, window: int, task: Task[T], chunks: Iterator[LineupBucket]
) -> Iterator[list[T]]:
    """Yield results in the order of the chunks, at most ``window`` of them under way.

    The first failure cancels the rest.
    """
    waiting: deque[Future[list[T]]] = deque()
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


def _all_chunks(lineup: Lineup) -> Iterator[LineupBucket]:
    for bucket in lineup.buckets:
        yield from chunks_of(bucket)


def chunks_of(bucket: LineupBucket) -> Iterator[LineupBucket]:
    """Yield pieces of a bucket that fit into the working memory."""
    entries = bucket.layout.stack * sum(bucket.shape) * sum(bucket.ranks)  # of one module
    size = max(1, _CHUNK_BYTES // (8 * entries))
    count = len(bucket.names)
    for start in range(0, count, size):
        yield bucket.select(range(start, min(start + size, count)))
