"""The trials of the nightly run, with few cases, and the table that is made from their results."""

import copy
from pathlib import Path

import pytest

from benchmarks.nightly import report
from benchmarks.nightly.trial import Trial, Unmeasured
from benchmarks.nightly.trials import TRIALS
from benchmarks.page import PAGE, replaced

FEW = {  # all but those whose subject has tests of its own here, or that need the network or atheris
    "kills": 2,
    "interrupts": 2,
    "disks": 4,
    "writes": 4,
    "reads": 4,
    "changes": 5,
    "races": 2,
    "soak": 30,
}


@pytest.mark.parametrize(
    "trial", [trial for trial in TRIALS if trial.name in FEW], ids=lambda trial: trial.name
)
def test_few_cases_of_each(trial: Trial, tmp_path: Path) -> None:
    try:
        outcome = trial.run(tmp_path, FEW[trial.name])
    except Unmeasured as why:
        pytest.skip(str(why))
    assert not outcome.lost
    assert outcome.found


def test_the_table_of_the_page_is_that_of_the_results() -> None:
    results, page = report.read(), PAGE.read_text("utf-8")
    assert page == replaced(page, "nightly", report.tables(results)), (
        "run: python -m benchmarks nightly --page"
    )
    assert [(row["name"], row["what"], row["cases"]) for row in results["rows"]] == [
        (trial.name, trial.what, trial.cases) for trial in TRIALS
    ]
    assert not any(row["lost"] for row in results["rows"])


def test_a_loss_is_in_the_table() -> None:
    results = report.read()
    other = copy.deepcopy(results)
    other["rows"][0]["lost"] = 7
    assert "| 7 |" in report.tables(other)
    assert "| 7 |" not in report.tables(results)
