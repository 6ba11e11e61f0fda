"""Units of work over processes of one thread each."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, Protocol


class Worker(Protocol):
    """One process: what its units have in common is loaded once."""

    def run(self, unit: Any) -> None:
        """Do everything that is missing of one unit."""
        ...


_worker: Worker


def _start(make: Callable[[], Worker]) -> None:
    global _worker
    import torch

    torch.set_num_threads(1)
    _worker = make()


def _run(unit: Any) -> None:
    _worker.run(unit)


def run(units: Iterable[Any], make: Callable[[], Worker], *, jobs: int) -> None:
    """Do all units in order, ``jobs`` at a time; the first failure ends the run."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start, (make,)) as pool:
        futures = [pool.submit(_run, unit) for unit in units]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
