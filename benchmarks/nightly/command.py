"""``python -m benchmarks nightly``: run all trials, or those named, and keep their results."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import save
from benchmarks.nightly import report
from benchmarks.nightly.trial import Trial, Unmeasured
from benchmarks.nightly.trials import TRIALS


def main(*, only: list[str], page: bool) -> bool:
    """Write benchmarks/results/nightly.json and the table of docs/benchmarks.md.

    only: the names of trials; the rows of other trials stay as they are. Returns whether every
    promise held.
    """
    if not page:
        rows = report.read()["rows"] if report.FILE.exists() else []
        known = {row["name"]: row for row in rows}
        for trial in TRIALS:
            if not only or trial.name in only:
                known[trial.name] = _run(trial)
                print(json.dumps(known[trial.name]), flush=True)
                save("nightly", [known[trial.name] for trial in TRIALS if trial.name in known])
    report.write()
    return not any(row["lost"] for row in report.read()["rows"])


def _run(trial: Trial) -> dict[str, Any]:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = trial.run(Path(folder), trial.cases)
        except Unmeasured as why:
            return {
                "name": trial.name,
                "what": trial.what,
                "cases": 0,
                "lost": 0,
                "found": f"unmeasured: {why}",
            }
    for line in outcome.lost:
        print(f"lost: {trial.name}: {line}")
    return {
        "name": trial.name,
        "what": trial.what,
        "cases": trial.cases,
        "lost": len(outcome.lost),
        "found": outcome.found,
        "seconds": round(time.perf_counter() - start),
    }
