"""Functions in a process of their own, which they may kill, limit or impoverish."""

import multiprocessing
import resource
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# Children are forked from a process that has imported all and run nothing: quick, and no thread is lost in the fork.
_FORK = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload(["__main__", "gam_merge", "pytest", "safetensors.torch"])


def start(target: Callable[..., None], *args: Any) -> BaseProcess:
    process = _FORK.Process(target=target, args=args)
    process.start()
    return process


def pipe() -> tuple[Connection, Connection]:
    """To receive from and to send to."""
    return _FORK.Pipe(duplex=False)


def limit(*, memory: int, seconds: float, wall: float) -> None:
    """From here on this process gets MemoryError beyond so many bytes more than it holds, and is killed by SIGPROF or
    SIGALRM, which nothing in Python catches, after so many seconds of the processor or of the clock. Calls may follow
    one another: each starts the time anew."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, wall)


def in_child(target: Callable[..., None], *args: Any) -> int:
    """Run in another process: its exit code, minus the signal if one killed it."""
    process = start(target, *args)
    process.join()
    assert process.exitcode is not None
    return process.exitcode
