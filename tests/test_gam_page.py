"""docs/gam.md, and the table of the example adapters, are those of the committed results."""

import json
from pathlib import Path

import pytest

from benchmarks import choice
from benchmarks.measure import RESULTS, table
from benchmarks.page import replaced
from benchmarks.theory import measure, report
from benchmarks.theory.worlds import WORLDS

EXAMPLES = Path(__file__).parents[1] / "examples" / "adapters"


def choice_rows() -> list[dict[str, float]]:
    return json.loads((RESULTS / "choice.json").read_text("utf-8"))["rows"]


def test_is_up_to_date() -> None:
    page = report.PAGE.read_text("utf-8")
    assert page == replaced(page, "theory", report.tables(report.read()))
    assert page == replaced(page, "choice", table(choice_rows()))
    assert len(report.read()) == len(WORLDS) * len(measure.COUNTS) * len(measure.NOISES)


def test_the_map_is_repeatable() -> None:
    world = "signal of rank 2, private directions"
    row = next(r for r in report.read() if (r["world"], r["N"], r["a"]) == (world, 2, 1.0))
    again = measure.setting(WORLDS[world], 2, 1.0)
    for scale in ("own", "best"):
        assert again[scale] == pytest.approx(row[scale], rel=1e-6)
    assert again["apart"] < 1e-10  # of two adapters of equal weight GAM needs no anchor


def test_gam_wins_where_theory_says_so() -> None:
    """One signal of low rank and private noise: below the mean in every such setting."""
    for row in report.read():
        if "private directions" in row["world"]:
            assert row["own"]["gam"] < row["own"]["mean"]


def test_the_look_of_auto_costs_a_tenth_of_a_merge_at_most() -> None:
    rows = choice_rows()
    assert [(r["model"], r["N"], r["r"]) for r in rows] == list(choice.CASES)
    for row in rows:
        for method in ("gam", "consensus"):
            merge = row["look (s)"] + row[f"merge, {method} (s)"]
            assert row["look (s)"] < 0.1 * merge, (row["model"], row["r"], method)


def test_the_first_command_of_the_readme_keeps_what_was_learned() -> None:
    """NLL on each adapter's own task: the default is below GAM on all three, and below the base."""
    rows = json.loads((EXAMPLES / "figures.json").read_text())["evaluation"]
    auto, gam = rows["merge, auto (default)"], rows["merge, -m gam"]
    for task in ("addition", "sorting", "spelling"):
        assert auto[task]["loss"] < gam[task]["loss"] < rows["base"][task]["loss"]
    text = (EXAMPLES / "README.md").read_text("utf-8")
    for name, row in rows.items():
        cells = [f"{r['loss']:.2f}, {100 * r['exact']:.0f} %" for r in row.values()]
        assert f"| {name} | {' | '.join(cells)} |" in text
