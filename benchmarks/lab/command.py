"""``python -m benchmarks lab``: print the cost, do the work, write the tables."""

from functools import partial
from pathlib import Path

from benchmarks.lab import report, rows
from benchmarks.lab.design import QUICK, Settings, Unit, cost, training, units
from benchmarks.lab.pool import run
from benchmarks.lab.run import Lab
from benchmarks.lab.studies import picture
from benchmarks.lab.studies import report as studies_report


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
    chosen: list[Unit] = []
    for unit in units(settings):
        wanted = (not kinds or unit.cell.kind in kinds) and (not passes or unit.what in passes)
        if wanted and (seeds is None or unit.cell.seed < seeds):
            chosen.append(unit)
    if not tables:
        seconds = sum(training(cell, settings) for cell in {unit.cell for unit in chosen})
        hours = (seconds + sum(cost(unit, settings) for unit in chosen)) / 3600
        size = f"{len(chosen)} units, at most {hours:.1f} core hours from nothing"
        print(f"{size}, {jobs} at a time", flush=True)
        if plan:
            for unit in chosen:
                print(f"{unit.what}: {unit.cell.kind}, {unit.cell.regime}, seed {unit.cell.seed}")
            return
        folder = cache / "quick" if quick else cache
        run(chosen, partial(Lab, settings, folder, results), jobs=jobs)
    measured = rows.read(results)
    if quick:
        for row in measured:
            if "nll" in row:
                about = [row[name] for name in ("kind", "regime", "method", "scale_rule")]
                print(*about, f"{report.nll(row):.3f}", sep=", ")
    else:
        write_tables(measured)


def write_tables(measured: list[rows.Row]) -> None:
    """Write all tables and pictures from the rows, those of the studies, too."""
    report.write(measured)
    report.plot(measured, report.PAGE.with_name("results.svg"))
    studied = rows.read(rows.STUDIED)
    studies_report.write(studied)
    picture.plot(studied)
