"""What ``python -m benchmarks lab`` does."""

from pathlib import Path

from benchmarks.lab import report, rows
from benchmarks.lab.design import QUICK, Settings, cost, training, units
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
        print(
            f"{len(chosen)} units, at most {hours:.1f} core hours from nothing, {jobs} at a time",
            flush=True,
        )
        if plan:
            for unit in chosen:
                print(f"{unit.what}: {unit.cell.kind}, {unit.cell.regime}, seed {unit.cell.seed}")
            return
        run(chosen, settings, cache / "quick" if quick else cache, results, jobs=jobs)
    if quick:
        for row in rows.read(results):
            if "nll" in row:
                print(
                    row["kind"],
                    row["regime"],
                    row["method"],
                    row["scale_rule"],
                    f"{report.nll(row):.3f}",
                    sep=", ",
                )
    else:
        report.write(rows.read(results))
        report.plot(rows.read(results), report.README.with_name("results.svg"))
