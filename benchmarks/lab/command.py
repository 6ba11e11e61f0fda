"""What ``python -m benchmarks lab`` does."""

from pathlib import Path

from benchmarks.lab import report, rows
from benchmarks.lab.design import AT_SIZES, CUT, GRID, QUICK, SECONDS, Settings, Unit, units
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
        hours = sum(cost(unit, settings) for unit in chosen) / 3600
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


def cost(unit: Unit, settings: Settings) -> float:
    """CPU seconds of a unit if nothing is there yet, counted high: sets share adapters."""
    size = settings.size
    test = size * -(-settings.test_items // 16) * SECONDS["batch"]
    validation = size * -(-settings.validation_items // 16) * SECONDS["batch"]
    training = size * settings.steps * SECONDS["step"]
    if unit.cell.kind == "preferences":
        training = size * settings.preference_steps * SECONDS["preference step"] + settings.weak_steps * SECONDS["step"]
        training += (size + 1) * size * settings.preference_items * SECONDS["answer"]
    return {
        "main": training + (size + 1) * test + 2 * len(settings.methods) * (SECONDS["merge"] + test),
        "tuned": len(settings.methods) * (SECONDS["merge"] + test + len(GRID) * validation),
        "rank": 2 * len(CUT) * (SECONDS["merge"] + test),
        "joint": training + test,
        "sizes": 4 * len(AT_SIZES) * (SECONDS["merge"] + test),
    }[unit.what]
