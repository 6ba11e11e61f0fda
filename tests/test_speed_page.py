"""The tables of docs/benchmarks.md are those of the committed results."""

import copy

import pytest

from benchmarks.page import PAGE, of_rows, replaced
from benchmarks.speed import report
from benchmarks.speed.cases import CASES


def test_is_up_to_date() -> None:
    results, page = report.read(), PAGE.read_text("utf-8")
    assert page == replaced(page, "speed", report.tables(results)), (
        "run: python -m benchmarks speed --page"
    )


@pytest.mark.parametrize("name", ["process", "modules", "busy"])
def test_the_other_tables_are_up_to_date(name: str) -> None:
    page = PAGE.read_text("utf-8")
    assert page == replaced(page, name, of_rows(name)), f"run: python -m benchmarks {name}"


def test_a_case_without_a_result_is_called_unmeasured() -> None:
    results = report.read()
    del results["rows"][0]
    model, count, rank, (method, *_) = CASES[0]
    assert (results["rows"][0]["model"], results["rows"][0]["N"]) != (model, count)
    assert f"| {count} | {rank} | {method} | unmeasured | unmeasured |" in report.tables(results)


def test_a_changed_figure_changes_the_tables() -> None:
    results = report.read()
    other = copy.deepcopy(results)
    other["rows"][0]["seconds"] = 1234.0
    assert "1.23e+03" in report.tables(other)
    assert "1.23e+03" not in report.tables(results)
