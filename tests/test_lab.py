"""The lab: its tables are those of the committed results, rows survive a kill, statistics against scipy."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.lab import report, rows
from benchmarks.lab.design import (
    BY_OVERLAP,
    EVERY,
    FAMILIES,
    METHODS,
    OTHERS,
    PLANE,
    Cell,
    Settings,
    units,
)
from benchmarks.lab.statistics import differences, holm, interval

ROOT = Path(__file__).parents[1]


def test_the_tables_are_those_of_the_results() -> None:
    results = rows.read(rows.RESULTS)
    text = report.PAGE.read_text("utf-8")
    there = text.partition("<!-- tables -->")[2].partition("<!-- /tables -->")[0].strip()
    assert there == report.tables(results)
    assert report.summary(results) in report.FRONT.read_text("utf-8")


def test_no_measurement_is_there_twice() -> None:
    keys = [rows.key(row) for row in rows.read(rows.RESULTS)]
    assert len(set(keys)) == len(keys)


def test_a_changed_figure_changes_the_tables() -> None:
    results = rows.read(rows.RESULTS)
    row = next(
        r for r in results if r["method"] == "gam" and r["scale_rule"] == "own" and r["size"] == 4
    )
    row["nll"] = {family: value + 1 for family, value in row["nll"].items()}
    assert report.tables(results) != report.tables(rows.read(rows.RESULTS))


def test_nothing_measured_is_called_unmeasured() -> None:
    text = report.tables([])
    assert "unmeasured" in text
    assert "±" not in text


def test_a_row_cut_short_is_dropped_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows.append(path, {"a": 1})
    with open(path, "a") as file:
        file.write('{"a": 2, "b"')
    assert rows.read(path) == [{"a": 1}]
    rows.append(path, {"a": 3})
    assert rows.read(path) == [{"a": 1}, {"a": 3}]


def test_units_are_balanced() -> None:
    """At any moment two cells of a pass and seed differ by one unit at most; no unit is there twice."""
    found = units(Settings())
    assert len(set(found)) == len(found)
    first = found[: 3 * 2 * 3]
    assert [u.cell.seed for u in first] == [0] * 6 + [1] * 6 + [2] * 6
    assert {u.what for u in first} == {"main"}
    assert sorted(
        f for seed in range(6) for f in Cell("specialists", "shared", seed).families(4)
    ) == sorted(FAMILIES * 4)


def test_regimes_share_the_first_adapter_alone() -> None:
    shared, separate = (Cell("specialists", regime, 2) for regime in ("shared", "separate"))
    assert [shared.init(i) for i in range(3)] == [200, 200, 200]
    assert [separate.init(i) for i in range(3)] == [200, 201, 202]


def test_interval_and_paired_test_are_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5)).tolist()
    low, high = stats.t.interval(0.95, 4, np.mean(a), stats.sem(a))
    found = interval(a)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert differences({"x": a, "ref": b}, "ref")["x"].p == pytest.approx(
        stats.ttest_rel(a, b).pvalue
    )


def test_holm() -> None:
    """Worked by hand: 0.01 * 3, 0.02 * 2, then the larger of 0.04 and 0.03."""
    assert holm({"b": 0.02, "a": 0.01, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "b": 0.04, "c": 0.04}
    )


@pytest.mark.parametrize(
    ("shift", "verdict"), [(-0.5, "better"), (0.5, "worse"), (0.0, "same"), (-0.012, "open")]
)
def test_verdicts(shift: float, verdict: str) -> None:
    noise = (
        [0.001, -0.001, 0.0005, -0.0005, 0.0]
        if shift != -0.012
        else [0.02, -0.02, 0.01, -0.01, 0.0]
    )
    values = {"mean": [1.0] * 5, "x": [1.0 + shift + e for e in noise]}
    assert differences(values, "mean")["x"].verdict == verdict


def test_one_seed_judges_nothing() -> None:
    assert differences({"mean": [1.0], "x": [0.1]}, "mean")["x"].verdict == "open"


def test_methods_exist() -> None:
    import gam_merge as gm

    for method, params in EVERY.values():
        gm.get_method(method).validate(params)
    assert len(EVERY) == len(METHODS) + len(OTHERS) + len(PLANE) + len(BY_OVERLAP)


def test_p_goes_from_tsvm_to_the_mean_with_the_overlap() -> None:
    import gam_merge as gm
    from benchmarks.lab import measure

    addition, sorting = ROOT / "examples/adapters/addition", ROOT / "examples/adapters/sorting"
    alike, apart = gm.compare([addition, addition]), gm.compare([addition, sorting])
    assert measure.by_overlap(alike, of_module=False) == pytest.approx(0, abs=1e-9)
    each = measure.by_overlap(apart, of_module=True)
    assert isinstance(each, list)
    overlaps = dict(
        zip([module.name for module in apart.modules], apart.measures.above_chance_u, strict=True)
    )
    expected = {name: -0.5 * (1 - max(overlap, 0)) for name, overlap in overlaps.items()}
    assert {entry["filter"]: entry["value"] for entry in each} == pytest.approx(expected)
    result = measure.merged("consensus, p of each module", [addition, sorting])
    short = measure.short(result.report.params)["p"]
    assert -0.5 <= short["least"] < short["mean"] < short["most"] <= 0


@pytest.mark.parametrize(
    ("command", "option"), [("lab", "--kind"), ("lab", "--only"), ("studies", "--study")]
)
def test_an_unknown_name_is_an_error(command: str, option: str) -> None:
    words = [sys.executable, "-m", "benchmarks", command, option, "nonsense", "--plan"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "must be one of" in done.stderr
    assert "got nonsense" in " ".join(done.stderr.replace("│", "").split())


def test_a_missing_extra_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "scipy.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'scipy'\", name='scipy')\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "benchmarks", "lab", "--plan"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT
    )
    assert done.returncode == 1
    assert done.stderr == "the lab needs scipy: pip install -e '.[train,dev]'\n"
