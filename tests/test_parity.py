"""The comparison with official code: the page says what was measured, and code is taken as it is."""

import copy
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gam_merge as gm
from benchmarks import page
from benchmarks.parity import command
from benchmarks.parity.cases import CASES, Case, Theirs
from benchmarks.parity.inputs import problems
from benchmarks.parity.official import Source, Torch, functions, loop

CODE = """
import nowhere
from typing import Optional

class Merger:
    @nowhere.decorated
    def mean(self, tensors: Optional[list[nowhere.Tensor]]) -> "nowhere.Tensor":
        def half(x: nowhere.Tensor) -> nowhere.Tensor:
            return x / self.count
        print("loud")
        return half(sum(tensors))

def load():
    nowhere.read()
    for name, x in tensors.items():
        doubled[name] = 2 * x
"""


@pytest.fixture
def checkouts(tmp_path: Path) -> Path:
    """A clone of a repository with one commit."""
    clone = tmp_path / "owner+name"
    clone.mkdir()
    (clone / "merge.py").write_text(CODE, encoding="utf-8")
    identity = ["-c", "user.name=owner", "-c", "user.email=owner@example.com"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=clone, check=True)
    (clone / "merge.py").write_text("later edits do not count", encoding="utf-8")
    return tmp_path


def source(checkouts: Path) -> Source:
    command = ["git", "-C", str(checkouts / "owner+name"), "rev-parse", "HEAD"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Source("owner/name", done.stdout.strip(), "merge.py")


def test_functions_are_compiled_without_what_stands_around_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = functions(CODE, ["mean"])
    tensors = [torch.ones(2), 3 * torch.ones(2)]
    assert code.mean(SimpleNamespace(count=2), tensors).tolist() == [2.0, 2.0]
    assert capsys.readouterr().out == ""


def test_a_loop_runs_on_the_names_that_it_is_given() -> None:
    after = loop(CODE, "tensors.items()", tensors={"w": 3}, doubled={})
    assert after["doubled"] == {"w": 6}
    with pytest.raises(ValueError, match="no loop over nothing"):
        loop(CODE, "nothing")


def test_random_functions_of_torch_can_be_replaced() -> None:
    fixed = Torch(rand=lambda count: torch.zeros(count))
    assert fixed.rand(3).tolist() == [0, 0, 0]
    assert fixed.ones is torch.ones


def test_the_commit_counts_and_not_the_files(checkouts: Path) -> None:
    assert source(checkouts).text(checkouts) == CODE
    assert Source("owner/other", "0" * 40, "merge.py").text(checkouts) is None


@pytest.mark.parametrize(("method", "agrees"), [("mean", True), ("sum", False)])
def test_a_comparison_measures_the_distance(
    checkouts: Path, monkeypatch: pytest.MonkeyPatch, method: str, agrees: bool
) -> None:
    """Rows go to the results and to the page; those of other comparisons stay."""

    def mean(text: str, problem: object) -> Theirs:
        count = SimpleNamespace(count=len(problem.deltas))
        return Theirs(functions(text, ["mean"]).mean(count, problem.deltas))

    results, document = checkouts / "parity.json", checkouts / "methods.md"
    document.write_text("<!-- python -m benchmarks parity -->\n<!-- end -->\n", encoding="utf-8")
    case = Case(method, source(checkouts), mean, fits=lambda problem: not problem.real)
    monkeypatch.setattr(command, "CASES", [case])
    monkeypatch.setattr(command, "FILE", results)
    monkeypatch.setattr(command, "PAGE", document)
    assert command.main(checkouts) is agrees
    row = json.loads(results.read_text("utf-8"))["mean"]
    assert row["merges"] == 4
    assert (row["largest"] < 1e-12) is agrees
    assert f"`{method}`" in document.read_text("utf-8")


def test_the_page_is_that_of_the_results() -> None:
    measured = json.loads(command.FILE.read_text("utf-8"))
    text = command.PAGE.read_text("utf-8")
    assert text == page.replaced(text, "parity", command.tables(measured)), (
        "run: python -m benchmarks parity"
    )
    other = copy.deepcopy(measured)
    other["iso_c"]["largest"] = 0.5
    assert command.tables(other) != command.tables(measured)


def test_every_comparison_was_measured_at_its_commit_and_agrees() -> None:
    measured = json.loads(command.FILE.read_text("utf-8"))
    assert {case.run.__name__ for case in CASES} == set(measured)
    for case in CASES:
        row = measured[case.run.__name__]
        assert row["commit"] == case.source.commit
        assert row["merges"] > 0
        assert row["largest"] < 1e-5, case.method


def test_methods_that_are_compared_exist() -> None:
    for case in CASES:
        gm.get_method(case.method)


def test_problems_span_what_the_core_holds() -> None:
    for problem in problems():
        total = sum(problem.deltas)
        lifted = problem.core.lift(sum(problem.core.deltas))
        assert float((lifted - total).norm() / total.norm()) < 1e-9
