"""Times a merge while other processes compute, next to a program of matrix products alone.

Both have one thread per core. Where they get as many times slower, the merge gets its fair share of
the machine: nothing in it waits for a thread that is not running.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

import gam_merge as gm
from benchmarks import page
from benchmarks.measure import save, table
from benchmarks.shapes import make_adapters

CASES = (("qwen3-8b", 3, 16), ("qwen3-8b", 3, 64))  # model, N, r
_SIDE = 256  # of the matrices: two of them fit into a core's own cache

_COMPUTE = f"""
import torch
torch.set_num_threads(1)
x = torch.randn({_SIDE}, {_SIDE})
print("ready", flush=True)
while True:
    x @ x
"""


def main(folder: Path, *, others: int, repeats: int) -> None:
    """Print a table, write benchmarks/results/busy.json and the table of docs/benchmarks.md."""
    rows = [_row(folder, *case, others, repeats) for case in CASES]
    print(table(rows))
    print(save("busy", rows, repeats=repeats))
    page.write_rows("busy")


def _row(
    folder: Path, model: str, count: int, rank: int, others: int, repeats: int
) -> dict[str, Any]:
    merge = partial(_merge, make_adapters(folder, model, count=count, rank=rank), folder / "merged")
    merge()  # warms the page cache and the libraries
    products = partial(_multiply, max(1, round(_seconds(merge) / _seconds(_multiply))))
    jobs = {"merge": merge, "products": products}
    times: dict[tuple[str, bool], list[float]] = {}
    for _ in range(repeats):
        for busy in (False, True):
            with _computing(others if busy else 0):
                for name, job in jobs.items():
                    times.setdefault((name, busy), []).append(_seconds(job))
    seconds = {key: median(values) for key, values in times.items()}
    slower = {name: seconds[name, True] / seconds[name, False] for name in jobs}
    return {
        "model": model,
        "N": count,
        "r": rank,
        "others": others,
        "merge (s)": seconds["merge", False],
        "merge, busy (s)": seconds["merge", True],
        "merge slower by": slower["merge"],
        "products slower by": slower["products"],
        "merge over products": slower["merge"] / slower["products"],
    }


def _merge(sources: list[Path], out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    gm.merge(sources, method="gam", out=out)


def _multiply(times: int = 1) -> None:
    """Multiply matrices on as many threads as a merge has, each on its own."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_products, [times] * threads))


def _products(times: int) -> None:
    torch.set_num_threads(1)
    x = torch.randn(_SIDE, _SIDE)
    for _ in range(200 * times):
        x @ x


@contextmanager
def _computing(count: int) -> Iterator[None]:
    """Have other processes compute, one thread each."""
    command = [sys.executable, "-c", _COMPUTE]
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
        yield


def _seconds(job: Callable[[], object]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start
