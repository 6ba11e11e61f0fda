"""The page of methods says what the methods say of themselves, and its example works."""

import re

import pytest
import torch
from catalogue import PROBLEMS
from methods_page import PAGE, page

import gam_merge as gm


def test_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python docs/methods_page.py"


def test_example_of_a_rule_works(monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    names: dict[str, object] = {}
    exec(example, names)
    monkeypatch.setitem(gm._methods._registry._OURS, "loudest", names["loudest"])
    problem = PROBLEMS["three"]
    found = (
        gm.merge(problem.adapters, method="loudest", params={"gain": 2}, rank=11)
        .adapter.modules["w"]
        .delta()
    )
    norms = torch.stack([delta.norm() for delta in problem.deltas])
    assert torch.allclose(found, 2 * problem.deltas[int(norms.argmax())], atol=1e-9)
