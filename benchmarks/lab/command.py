"""What ``python -m benchmarks lab`` does."""

from pathlib import Path

from benchmarks.lab import report, rows
from benchmarks.lab.choose import POINTS
from benchmarks.lab.design import (
    AT_SIZES,
    BY_OVERLAP,
    CUT,
    FEW,
    GRID,
    OTHERS,
    QUICK,
    SECONDS,
    Cell,
    Settings,
    Unit,
    units,
)
from benchmarks.lab.run import run


def main(
    cache: Path,
    *,
    jobs: int,
    quick: bool,
    plan: bool,
    tables: bool,
    kinds: list[str],
    passes: list[str],
    seeds: int | None,
) -> None:
    """Print the cost, do the work, write the tables."""
    settings = QUICK if quick else Settings()
    results = cache / "quick.jsonl" if quick else rows.RESULTS
    chosen = [
        unit
        for unit in units(settings)
        if (not kinds or unit.cell.kind in kinds)
        and (not passes or unit.what in passes)
        and (seeds is None or unit.cell.seed < seeds)
    ]
    if not tables:
        seconds = sum(training(cell, settings) for cell in {unit.cell for unit in chosen})
        hours = (seconds + sum(cost(unit, settings) for unit in chosen)) / 3600
        print(f"{len(chosen)} units, at most {hours:.1f} core hours from nothing, {jobs} at a time", flush=True)
        if plan:
            for unit in chosen:
                print(f"{unit.what}: {unit.cell.kind}, {unit.cell.regime}, seed {unit.cell.seed}")
            return
        run(chosen, settings, cache / "quick" if quick else cache, results, jobs=jobs)
    if quick:
        for row in rows.read(results):
            if "nll" in row:
                print(row["kind"], row["regime"], row["method"], row["scale_rule"], f"{report.nll(row):.3f}", sep=", ")
    else:
        report.write(rows.read(results))
        report.plot(rows.read(results), report.README.with_name("results.svg"))


def training(cell: Cell, settings: Settings) -> float:
    """CPU seconds for the adapters of a set if none is there yet, counted high: sets share adapters."""
    size = settings.size
    if cell.kind == "preferences":
        steps = size * settings.preference_steps * SECONDS["preference step"] + settings.weak_steps * SECONDS["step"]
        return steps + (size + 1) * size * settings.preference_items * SECONDS["answer"]
    return size * settings.steps * SECONDS["step"]


def cost(unit: Unit, settings: Settings) -> float:
    """CPU seconds of a unit beside the training of its set."""
    size, more = settings.size, 6 - settings.size  # more: adapters of the largest of the sizes
    test = size * -(-settings.test_items // 16) * SECONDS["batch"]
    validation = size * -(-settings.validation_items // 16) * SECONDS["batch"]
    few = sum(size * -(-most // 16) * SECONDS["batch"] for most in FEW)
    return {
        "main": (size + 1) * test + 2 * len(settings.methods) * (SECONDS["merge"] + test),
        "others": 2 * (len(OTHERS) * (SECONDS["merge"] + test) + SECONDS["frechet"]),
        "plane": len(POINTS) * (SECONDS["merge"] + test + few),
        "overlap": 2 * len(BY_OVERLAP) * (SECONDS["merge"] + test),
        "tuned": len(settings.methods) * (SECONDS["merge"] + test + len(GRID) * validation),
        "rank": 2 * len(CUT) * (SECONDS["merge"] + test),
        "joint": size * settings.steps * SECONDS["step"] + test,
        "sizes": more * settings.steps * SECONDS["step"] + 4 * len(AT_SIZES) * (SECONDS["merge"] + test),
    }[unit.what]
