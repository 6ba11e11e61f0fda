"""The page of formats is that of the committed results, and these are what is measured."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.formats import report
from benchmarks.formats.measure import ONE, SEEN, TWO, measure
from benchmarks.formats.readers import Changes
from benchmarks.formats.rows import ROWS, Row

RUNNING = [row for row in ROWS if row.runs]


def test_is_up_to_date() -> None:
    results = report.read()
    assert report.PAGE.read_text("utf-8") == report.page(results), (
        "run: python -m benchmarks formats --page"
    )
    measured = [row["format"] for row in results["rows"]]
    assert measured == [row.name for row in ROWS if row.supported]


def test_a_changed_figure_changes_the_page() -> None:
    results = report.read()
    other = copy.deepcopy(results)
    other["rows"][0][TWO] = 0.5
    assert "**wrong**: 50%" in report.page(other)
    assert report.page(other) != report.page(results)


def test_all_are_right_and_whole() -> None:
    for row in report.read()["rows"]:
        found, _, expected = row[SEEN].partition(" of ")
        assert max(row[ONE], row[TWO]) < report.EXACT, row["format"]
        assert found == expected != "0", row["format"]


@pytest.mark.parametrize("row", RUNNING, ids=lambda row: row.name)
def test_a_row_is_measured(row: Row, tmp_path: Path) -> None:
    committed = {each["format"]: each for each in report.read()["rows"]}[row.name]
    measured = measure(row, tmp_path / "row")
    assert measured[SEEN] == committed[SEEN]
    assert max(measured[ONE], measured[TWO]) < report.EXACT


def test_what_the_reader_does_not_find_is_an_error(tmp_path: Path) -> None:
    (row,) = [row for row in ROWS if row.name == "PEFT"]

    def blind(paths: Sequence[Path], weights: Sequence[float]) -> Changes:
        return {} if paths[0].name == row.out else row.read(paths, weights)

    found = measure(replace(row, read=blind), tmp_path / "row")
    assert (found[ONE], found[TWO], found[SEEN]) == (1.0, 1.0, "0 of 6")
