"""Functions in a process of their own, which they may kill, limit or impoverish."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
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


def in_child(target: Callable[..., None], *args: Any) -> int:
    """Run in another process: its exit code, minus the signal if one killed it."""
    process = start(target, *args)
    process.join()
    assert process.exitcode is not None
    return process.exitcode
