"""Run the comparisons, keep what was measured, and write the table of docs/methods.md."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

import gam_merge as gm
from benchmarks import page
from benchmarks.measure import RESULTS, table
from benchmarks.parity.cases import CASES, Case
from benchmarks.parity.inputs import Problem, problems

FILE = RESULTS / "parity.json"
PAGE = RESULTS.parents[1] / "docs" / "methods.md"
_LARGEST = 1e-5  # relative Frobenius distance


def main(checkouts: Path | None, *, only: str = "") -> bool:
    """Compare, or only write the table if there are no checkouts. Returns whether all agree."""
    if checkouts is not None:
        rows = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
        for case in CASES:
            row = _row(case, checkouts) if only in case.run.__name__ else None
            if row is not None:
                rows[case.run.__name__] = row
                print(f"{case.run.__name__:20} {row['largest']:.1e} over {row['merges']} merges")
        FILE.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    measured = json.loads(FILE.read_text("utf-8"))
    page.write("parity", tables(measured), PAGE)
    return all(row["largest"] < _LARGEST for row in measured.values())


def tables(rows: dict[str, Any]) -> str:
    """Return the table of the page, of all that was measured."""
    measured = [case for case in CASES if case.run.__name__ in rows]
    return table([_cells(case, rows[case.run.__name__]) for case in measured])


def _cells(case: Case, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": f"`{case.method}`",
        "official code": case.source.link,
        "file": f"`{case.source.path}`",
        "largest difference": f"{row['largest']:.0e}",
        "merges": row["merges"],
        "compared at": case.note,
    }


def _row(case: Case, checkouts: Path) -> dict[str, Any] | None:
    """Measure a case on every problem that it fits; None without a checkout."""
    text = case.source.text(checkouts)
    if text is None:
        return None
    found = list(_distances(case, text))
    return {"commit": case.source.commit, "largest": max(found), "merges": len(found)}


def _distances(case: Case, text: str) -> Iterator[float]:
    for problem in problems():
        if case.fits(problem):
            theirs = case.run(text, problem)
            ours = _ours(case.method, problem, dict(theirs.params))
            yield float((ours - theirs.merged).norm() / theirs.merged.norm())


def _ours(method: str, problem: Problem, params: dict[str, Any]) -> Tensor:
    """Merge, uncut: the dense result."""
    rank = min(problem.deltas[0].shape)
    if method.endswith("@delta"):
        params["columns"] = rank
    result = gm.merge(problem.adapters, method=method, params=params, rank=rank)
    return result.adapter.modules["w"].delta()
