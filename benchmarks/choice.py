"""Times the look by which ``auto`` chooses, over the merge that follows it.

In seconds of processor time, which hardly depend on what else runs; the least of a few runs.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gam_merge as gm
from benchmarks import page
from benchmarks.measure import save, table
from benchmarks.shapes import make_adapters
from gam_merge._run.choice import choose, sample

CASES = (("smollm2-135m", 3, 16), ("qwen3-8b", 3, 16), ("qwen3-8b", 3, 64))  # model, N, r
PAGE = page.PAGE.with_name("gam.md")


def main(folder: Path, *, repeats: int) -> None:
    """Print a table, write benchmarks/results/choice.json and the table of docs/gam.md."""
    rows = [_row(folder, *case, repeats) for case in CASES]
    print(table(rows))
    print(save("choice", rows))
    page.write("choice", table(rows), PAGE)


def _row(folder: Path, model: str, count: int, rank: int, repeats: int) -> dict[str, Any]:
    sources = make_adapters(folder, model, count=count, rank=rank)
    planned = gm.plan(sources)
    look = _processor_time(partial(choose, planned.lineup, planned.job), repeats)
    row: dict[str, Any] = {
        "model": model,
        "N": count,
        "r": rank,
        "modules": len(planned.modules),
        "looked at": len(sample(planned.lineup).names),
        "look (s)": look,
    }
    for method in ("gam", "consensus"):
        merge = partial(_merge, sources, method, rank, folder / "merged")
        seconds = _processor_time(merge, repeats)
        row |= {f"merge, {method} (s)": seconds, f"look over {method}": look / seconds}
    return row


def _processor_time(job: Callable[[], object], repeats: int) -> float:
    """Return the processor time of all threads, after one run that warms the caches."""
    job()
    times: list[float] = []
    for _ in range(repeats):
        start = time.process_time()
        job()
        times.append(time.process_time() - start)
    return min(times)


def _merge(sources: Sequence[Path], method: str, rank: int, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    gm.merge(sources, method=method, rank=rank, out=out)
