"""The page of variants is that of the committed results, and these are what is measured."""

import copy
from pathlib import Path

import pytest

from benchmarks.variants import report
from benchmarks.variants.measure import Measured, by_mergekit
from benchmarks.variants.rows import ROWS


def test_is_up_to_date() -> None:
    results = report.read()
    assert report.PAGE.read_text("utf-8") == report.page(results), (
        "run: python -m benchmarks variants --page"
    )
    assert [row["adapters"] for row in results["rows"]] == [row.name for row in ROWS]


def test_a_changed_figure_changes_the_page() -> None:
    results = report.read()
    other = copy.deepcopy(results)
    other["rows"][0]["gam-merge"] = 0.5
    assert "**wrong**: 50%" in report.page(other)
    assert report.page(other) != report.page(results)


def test_ours_are_right_or_refused() -> None:
    for row in report.read()["rows"]:
        found = row["gam-merge"]
        assert found.startswith("refused: ") if isinstance(found, str) else found < report.EXACT, (
            row["adapters"]
        )


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("Linear", 0.0, 0.0),
        ("rsLoRA", 0.7, 0.0),
        ("experts of a MoE (target_parameters)", "refused: ", 0.0),
        ("LoHa", "crash: AttributeError", "refused: "),
        ("modules_to_save in the first alone", 0.7, 0.0),
        ("keys without base_model.model.", 1.0, 0.0),
    ],
)
def test_a_cell_is_measured(
    name: str, theirs: float | str, ours: float | str, tmp_path: Path
) -> None:
    measured = Measured(next(row for row in ROWS if row.name == name), tmp_path)
    found = measured.error(lambda: measured.by_peft("cat")), measured.error(measured.by_us)
    for cell, expected in zip(found, (theirs, ours), strict=True):
        if isinstance(expected, str):
            assert str(cell).startswith(expected)
        else:
            assert cell == pytest.approx(expected, abs=0.1 if expected else report.EXACT)
    if isinstance(ours, str):
        committed = next(row for row in report.read()["rows"] if row["adapters"] == name)
        assert found[1] == committed["gam-merge"]
    assert str(by_mergekit(None, {name: measured}, tmp_path)[1][name]).startswith("unmeasured: ")
