"""How things are timed: several repeats in turn, on a machine that is named."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def medians(jobs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median wall seconds of each job."""
    return {name: statistics.median(times) for name, times in _in_turn(jobs, repeats).items()}


def least(jobs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the least wall seconds of each job, to compare with what a machine can do at best."""
    return {name: min(times) for name, times in _in_turn(jobs, repeats).items()}


def _in_turn(
    jobs: Mapping[str, Callable[[], object]], repeats: int
) -> Mapping[str, Sequence[float]]:
    """Return the wall seconds of every run.

    The jobs take turns, so that a slow minute hits all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return times


def machine() -> dict[str, Any]:
    """Return what the figures are measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            model = names[0].partition(":")[2].strip()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def measured_on(machine: dict[str, Any]) -> str:
    """Return the machine of results as the beginning of a sentence."""
    return (
        f"Measured on {machine['cores']} cores of {machine['cpu']}, {machine['threads']} threads, "
        f"torch {machine['torch']}"
    )


def save(name: str, rows: list[dict[str, Any]], *, folder: Path = RESULTS, **more: Any) -> Path:
    """Write rows, the machine and more fields to NAME.json in benchmarks/results/."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **more, "rows": rows}, indent=2) + "\n")
    return path


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table; numbers to three digits."""
    columns: dict[str, None] = {}
    for row in rows:
        columns |= dict.fromkeys(row)
    lines = [list(columns), ["---"] * len(columns)]
    for row in rows:
        lines.append([_text(row.get(name, "")) for name in columns])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
