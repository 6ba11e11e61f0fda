"""The tables of speed in the README are those of the committed results."""

import copy

from benchmarks.page import README, replaced
from benchmarks.speed import report
from benchmarks.speed.cases import CASES


def test_is_up_to_date() -> None:
    results, readme = report.read(), README.read_text("utf-8")
    assert readme == replaced(readme, "speed", report.tables(results)), (
        "run: python -m benchmarks speed --page"
    )
    measured = [(row["model"], row["N"], row["r"], row["method"]) for row in results["rows"]]
    assert measured == [
        (model, n, r, method) for model, n, r, methods in CASES for method in methods
    ]


def test_a_changed_figure_changes_the_tables() -> None:
    results = report.read()
    other = copy.deepcopy(results)
    other["rows"][0]["seconds"] = 1234.0
    assert "1.23e+03" in report.tables(other)
    assert "1.23e+03" not in report.tables(results)
