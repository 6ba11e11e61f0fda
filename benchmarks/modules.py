"""Times what grows with the number of modules alone, over the merge: plan, config and report."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import gam_merge as gm
from benchmarks import page
from benchmarks.measure import save, table
from benchmarks.shapes import make_adapters
from gam_merge._write.adapter import as_json, config_files

T = TypeVar("T")


def main(folder: Path, *, layers: list[int], rank: int, count: int, repeats: int) -> None:
    """Print a row per number of layers; write benchmarks/results/modules.json and the page."""
    rows = [_row(folder, number, rank, count, repeats) for number in layers]
    print(table(rows))
    print(save("modules", rows))
    page.write_rows("modules")


def _row(folder: Path, layers: int, rank: int, count: int, repeats: int) -> dict[str, object]:
    """Return the least processor seconds of each step: they vary less than wall seconds."""
    sources = make_adapters(folder, f"moe-128-{layers}", count=count, rank=rank)
    out = folder / "merged"
    merging, result = _least(lambda: gm.merge(sources, method="gam", out=out, force=True), repeats)
    planning, _ = _least(lambda: gm.plan(sources, method="gam"), repeats)
    config, _ = _least(lambda: config_files(result.adapter), repeats)
    reporting, report = _least(lambda: as_json(result.report.to_dict()), repeats)
    aside = planning + config + reporting
    return {
        "case": f"{count} x {128 * layers} experts of 2048 x 768, r = {rank}, bf16",
        "modules": len(result.report.modules),
        "merge (s)": merging,
        "plan (s)": planning,
        "config (s)": config,
        "report (s)": reporting,
        "share": aside / merging,
        "plan, config and report per module (ms)": 1000 * aside / len(result.report.modules),
        "report (MB)": len(report) / 1e6,
    }


def _least(job: Callable[[], T], repeats: int) -> tuple[float, T]:
    """Return the least processor seconds of some runs, and what the last one returned."""
    seconds: list[float] = []
    for _ in range(repeats):
        start = time.process_time()
        result = job()
        seconds.append(time.process_time() - start)
    return min(seconds), result
