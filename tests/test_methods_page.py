"""The page of methods says what the methods say of themselves, and its examples work."""

import re
from typing import Any

import pytest
import torch
from catalogue import PROBLEMS, merged
from helpers import relative
from methods_page import PAGE, page

import gam_merge as gm

EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def example(name: str) -> Any:
    """The rule, space or plug-in of that name that the page shows."""
    (text,) = (text for text in EXAMPLES if f"def {name}(" in text)
    names: dict[str, object] = {}
    exec(text, names)
    return names[name]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All examples, as if a package had brought them."""
    for name in ("loudest", "mean_basis", "limit"):
        monkeypatch.setitem(gm._methods._registry._BUILT_IN, name, example(name))


def test_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("loudest", "mean_basis", "limit"):
        monkeypatch.delitem(gm._methods._registry._BUILT_IN, name)
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python docs/methods_page.py"


def test_every_example_is_tested() -> None:
    assert len(EXAMPLES) == 3


def test_example_of_a_rule_works() -> None:
    problem = PROBLEMS["three"]
    found = (
        gm.merge(problem.adapters, method="loudest", params={"gain": 2}, rank=11)
        .adapter.modules["w"]
        .delta()
    )
    norms = torch.stack([delta.norm() for delta in problem.deltas])
    assert torch.allclose(found, 2 * problem.deltas[int(norms.argmax())], atol=1e-9)


def test_example_of_a_space_works() -> None:
    """A mean there is the mean; magnitude keeps the largest entries in its singular bases."""
    problem = PROBLEMS["three"]
    mean = sum(w * d for w, d in zip(problem.weights, problem.deltas, strict=True))
    assert relative(merged(problem, "mean@mean_basis"), mean) < 1e-9
    total = sum(problem.deltas)
    u, _, vt = torch.linalg.svd(total, full_matrices=False)
    rank = int(torch.linalg.matrix_rank(total))
    u, vt = u[:, :rank], vt[:rank]
    expected = torch.zeros_like(total)
    for delta in problem.deltas:
        x = u.T @ delta @ vt.T
        least = x.abs().flatten().kthvalue(x.numel() - int(0.5 * x.numel()) + 1).values
        expected += u @ (x * (x.abs() >= least)) @ vt
    found = merged(problem, "magnitude@mean_basis", weights=[1.0, 1.0, 1.0], density=0.5)
    assert relative(found, expected) < 1e-8


def test_example_of_a_plug_in_works() -> None:
    problem = PROBLEMS["close"]
    loudest = max(float(delta.norm()) for delta in problem.deltas)
    total = merged(problem, "sum", weights=[1.0, 1.0, 1.0])
    assert float(total.norm()) > 1.5 * loudest
    found = merged(problem, "sum+limit", weights=[1.0, 1.0, 1.0], **{"limit.times": 1.5})
    assert relative(found, 1.5 * loudest / total.norm() * total) < 1e-9
    assert relative(merged(problem, "mean+limit"), merged(problem, "mean")) < 1e-12
