"""SECURITY.md: each promise names tests, and they exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
ROWS = re.findall(r"^\| (?!promise|---)(.+?) \| (.+) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("promise", "tests"), ROWS, ids=[promise for promise, _ in ROWS])
def test_the_tests_of_a_promise_exist(promise: str, tests: str) -> None:
    for part in tests.split("; "):
        file, _, names = part.partition(": ")
        tree = ast.parse((ROOT / "tests" / file.strip("`")).read_text("utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        named = re.findall(r"`(test_\w+)`", names)
        assert named
        assert set(named) <= defined


def test_every_promise_is_in_the_table() -> None:
    """One row at least per sentence in bold."""
    guarantees = PAGE.partition("## Guarantees")[2].partition("Each of these")[0]
    assert len(ROWS) >= len(re.findall(r"^- \*\*", guarantees, re.MULTILINE)) > 5
