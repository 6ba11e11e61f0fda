"""Processes, a Dask cluster and Ray as what ``executor=`` of gam_merge takes.

    pip install gam-merge "dask[distributed]"    # for "dask"
    pip install gam-merge ray                    # for "ray"

Dask and Ray run a task again if the process that it is on dies.
"""

from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import torch


@contextmanager
def executor(on: str, workers: int = 2, address: str | None = None) -> Iterator[Executor]:
    """Start processes of one thread each on this machine, or join the cluster at an address.

    on: "processes", "dask" or "ray".
    """
    if on == "processes":
        context, one_thread = get_context("spawn"), torch.set_num_threads
        with ProcessPoolExecutor(workers, context, one_thread, (1,)) as pool:
            yield pool
    elif on == "dask":
        from dask.distributed import Client

        local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": ":0"}
        with Client(address) if address else Client(**local) as client:
            yield client.get_executor()
    else:
        import ray

        with ray.init(address) if address else ray.init(num_cpus=workers):
            yield RayExecutor()


class RayExecutor(Executor):
    """The tasks of Ray, behind the interface of the standard library."""

    def __init__(self) -> None:
        import ray

        # Ray takes functions alone, not everything that can be called.
        self._call = ray.remote(lambda task, arguments, named: task(*arguments, **named))

    def submit(self, task, /, *arguments, **named) -> Future:
        return self._call.remote(task, arguments, named).future()
