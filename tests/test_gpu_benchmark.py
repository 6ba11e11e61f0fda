"""``python -m benchmarks gpu`` at toy size, on the device that there is, and the tables of its results."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import gam_merge as gm
from benchmarks.gpu import candidates, command, merges, report
from benchmarks.page import PAGE, replaced
from benchmarks.shapes import make_adapters

ROOT = Path(__file__).parents[1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("gpu")
    call = [sys.executable, "-m", "benchmarks", "gpu", "--device", DEVICE, "--toy"]
    call += ["--folder", str(out / "adapters"), "--out", str(out)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "gpu.json").read_text())


def of(results: dict[str, Any], what: str) -> list[dict[str, Any]]:
    return [row for row in results["rows"] if row["what"] == what]


def test_every_rule_is_that_of_the_cpu(results: dict[str, Any]) -> None:
    rows = of(results, "merge")
    assert {row["method"] for row in rows} == {method.name for method in gm.methods()}
    assert [row["method"] for row in rows[:3]] == list(merges.FIRST)
    for row in rows:
        assert row["same again"], row
        assert row["error"] < 1e-5, row  # float32, and what rounding does to a rotation
        assert row["seconds"] > 0 < row["CPU (s)"]


def test_the_cases_and_their_order(results: dict[str, Any]) -> None:
    assert [(case.model, case.rank) for case in merges.CASES] == [
        (model, rank) for rank in (16, 64, 256) for model in ("qwen3-8b", "llama3-70b")
    ]
    kinds = [row["what"] for row in results["rows"]]
    order = [kind for kind, before in zip(kinds, ["", *kinds], strict=False) if kind != before]
    assert order == ["merge", "routine", "chunk", "merge"]


def test_distances_are_relative_and_per_module(tmp_path: Path) -> None:
    sources = make_adapters(tmp_path, "smollm2-135m", count=3, rank=4, layers=1)
    options: dict[str, Any] = {"rank": 4, "dtype": "float32"}
    total, mean = (gm.merge(sources, method=name, **options) for name in ("sum", "mean"))
    distances = list(merges.distances(total.adapter, mean.adapter))  # the sum is 3 times the mean
    assert distances == pytest.approx([2.0] * 7, rel=1e-6)
    assert list(merges.distances(mean.adapter, mean.adapter)) == [0.0] * 7


def test_every_routine_is_measured(results: dict[str, Any]) -> None:
    rows = of(results, "routine")
    for operation in candidates.OPERATIONS:
        measured = {row["routine"]: row for row in rows if row["operation"] == operation.name}
        on_cuda_alone = set(operation.routines) - set(measured)
        assert on_cuda_alone <= {"gesvdj", "gesvd", "gesvda"}
        assert not (on_cuda_alone and DEVICE == "cuda")
        taken = next(iter(operation.routines))  # by the library
        assert measured[taken]["error"] <= operation.exact
    single = next(row for row in rows if row["routine"] == "in float32")
    assert 1e-9 < single["error"] < 1e-6  # it is not float64 by mistake


def test_the_tables_have_every_row(results: dict[str, Any]) -> None:
    text = report.tables(results)
    for row in of(results, "merge"):
        assert f"| {row['method']} |" in text
    assert "Llama-3-70B, r = 256" in text
    assert report.UNMEASURED in text  # the cases that a toy leaves out
    for size in merges.CHUNKS:
        assert f"{size} MB" in text


def test_seconds_without_those_of_the_cpu() -> None:
    row = {"what": "merge", "model": "llama3-70b", "r": 256, "method": "ties", "seconds": 9.0}
    (line,) = report.merge_rows([row])
    assert line["Llama-3-70B, r = 256"] == "9"
    (line,) = report.merge_rows([row | {"CPU (s)": 18.0, "error": 1e-7, "same again": False}])
    assert line["Llama-3-70B, r = 256"] == "9 (2.0 x)"
    assert (line["error"], line["same again"]) == (1e-7, "no")


def test_the_fastest_routine_that_is_exact() -> None:
    operation = candidates.OPERATIONS[0]
    row = {"what": "routine", "operation": operation.name, "size": "2 x 4 x 4"}
    rows = [
        row | {"routine": "default", "seconds": 3.0, "error": 1e-15},
        row | {"routine": "gesvd", "seconds": 2.0, "error": 1e-15},
        row | {"routine": "gesvda", "seconds": 1.0, "error": 1e-3},
        row | {"routine": "looped", "failed": "no convergence"},
    ]
    (line,) = report.routine_rows(rows, operation)
    assert line["fastest that is exact"] == "gesvd"
    assert line["gesvda"] == "1e+03 (1e-03)"
    assert line["looped"] == "failed: no convergence"
    assert line["on the CPU"] == report.UNMEASURED


def test_nothing_measured_is_called_unmeasured() -> None:
    text = report.tables({"rows": []})
    tables = [line for line in text.splitlines() if line.startswith(("| every", "| gam"))]
    assert len(tables) == 2 + len(candidates.OPERATIONS)
    assert all(report.UNMEASURED in line for line in tables)
    assert not any(character in text for character in ("nan", "0.0"))


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text("utf-8")
    expected = replaced(page, "gpu", report.tables(report.read()))
    assert page == expected, "run: python -m benchmarks gpu --page"


def test_the_end_of_the_time_keeps_what_is_done() -> None:
    """The measuring process is ended in the middle of a row."""
    code = (
        'import time; print(\'{"a": 1}\\n{"b": 2}\\n{"c\', end=\'\', flush=True); time.sleep(600)'
    )
    start = time.monotonic()
    rows = list(command.rows_in_time([sys.executable, "-c", code], 5.0))
    assert rows == [{"a": 1}, {"b": 2}]
    assert time.monotonic() - start < 60


def test_a_failure_of_the_measuring_process_is_one() -> None:
    rows = command.rows_in_time([sys.executable, "-c", "print('{}'); 1 / 0"], 600.0)
    assert next(rows) == {}
    with pytest.raises(SystemExit, match="exit code 1"):
        next(rows)


@pytest.mark.parametrize(
    ("device", "toy", "text"),
    [("cuda", False, "no CUDA device"), ("cpu", False, "--out"), ("cuda", True, "--out")],
)
@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU")
def test_results_of_a_cpu_are_not_kept_as_those_of_a_gpu(device, toy, text, tmp_path) -> None:
    with pytest.raises(SystemExit, match=text):
        command.main(tmp_path, device=device, toy=toy, minutes=1.0)
