"""``python -m benchmarks studies``: print the cost, do the work."""

from functools import partial
from pathlib import Path

from benchmarks.lab.pool import run
from benchmarks.lab.studies.design import cost, units
from benchmarks.lab.studies.run import Studies


def main(folder: Path, *, jobs: int, plan: bool, names: list[str], seeds: int | None) -> None:
    """Print the cost and do the work that is missing."""
    work = units(names, seeds)
    hours = sum(cost(unit.study) for unit in work) / 3600
    print(f"{len(work)} units, about {hours:.1f} CPU hours from nothing, {jobs} at a time")
    for unit in work:
        print(f"{unit.study.name}, seed {unit.seed}: {cost(unit.study) / 60:.0f} CPU minutes")
    if not plan:
        run(work, partial(Studies, folder), jobs=jobs)
