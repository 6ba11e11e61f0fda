"""The second reading of the lab: every claim of its verdict holds, and fails if row or text change."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lab import check

ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in (check.HOME / "results.jsonl").read_text("utf-8").splitlines()
]
PAGE = (check.HOME / "README.md").read_text("utf-8")


def failed(rows: list[dict[str, Any]], page: str) -> set[str]:
    """Where a claim does not hold: the number of its sentence, or table."""
    return {reading.where for reading in check.readings(rows, page) if not reading.holds}


def test_every_claim_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert [x.where for x in check.readings(ROWS, PAGE)] == [*"12345678", *["table"] * 8]
    assert check.main() == 0
    assert "NO" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "scale", "rank", "by", "where"),
    [
        ("gam", "own", "R", -2.0, "1"),
        ("gam", "norm", "R", -2.0, "2"),
        ("consensus(-0.25)", "own", "r", 1.0, "3"),
        ("tsvm", "norm", "R", 1.0, "4"),
        ("iso_c", "tuned", "R", -2.0, "5"),
        ("consensus(-0.5, 1)", "norm", "R", -1.0, "6"),
        ("mean", "own", "r", 1.0, "7"),
        ("joint training", "own", "r", -1.0, "8"),
        ("ties@knots", "norm", "R", 0.01, "table"),
    ],
)
def test_a_changed_row_breaks_its_claim(
    method: str, scale: str, rank: str, by: float, where: str
) -> None:
    rows = deepcopy(ROWS)
    kind = "specialists" if method == "joint training" else "same goal"
    about = {"method": method, "scale_rule": scale, "rank": rank, "size": 4, "kind": kind}
    row = next(row for row in rows if about.items() <= row.items())
    row["nll"] = {family: value + by for family, value in row["nll"].items()}
    assert where in failed(rows, PAGE)


NUMBERS = [number.span() for number in re.finditer(r"(?<![\w(.-])[+-]?\d+(\.\d+)?(?=[ ,.])", PAGE)]
START, END = PAGE.index("## Verdict"), PAGE.index("This says nothing")
STATED = [span for span in NUMBERS if START < span[0] < END and PAGE[span[0] - 1] != "\n"]


@pytest.mark.parametrize("span", STATED, ids=lambda span: f"{PAGE[slice(*span)]} at {span[0]}")
def test_a_changed_number_breaks_its_claim(span: tuple[int, int]) -> None:
    first, end = span
    last = "1" if PAGE[end - 1] != "1" else "2"
    sentence = re.findall(r"^(\d)\. ", PAGE[START:first], re.MULTILINE)[-1]
    assert failed(ROWS, f"{PAGE[: end - 1]}{last}{PAGE[end:]}") == {sentence}


def test_a_changed_word_or_cell_breaks_its_claim() -> None:
    assert failed(ROWS, PAGE.replace("harm adapters", "help adapters")) == {"5"}
    assert failed(ROWS, PAGE.replace("| specialists, shared |", "| specialists, other |")) == {
        "table"
    }
    assert failed(ROWS, PAGE.replace("+0.315 ± 0.146", "+0.315 ± 0.147")) == {"table"}


def test_it_shares_no_code_with_the_tables() -> None:
    source = Path(check.__file__).read_text("utf-8")
    assert not re.search(r"^\s*(from|import) +benchmarks", source, re.MULTILINE)
