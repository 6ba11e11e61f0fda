"""One row of the table: how far the merge, as its reader reads it, is from the sources."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gam_merge as gm
from benchmarks.formats.readers import Changes
from benchmarks.formats.rows import Row

WEIGHTS = (0.3, 0.7)
ONE, TWO, SEEN = "a merge of one", "a weighted mean of two", "changed"


def measure(row: Row, folder: Path) -> dict[str, Any]:
    """Return the relative errors, and how many weights the reader changes of those it should."""
    folder.mkdir(parents=True)
    paths = row.save(folder)
    one, _ = _error(row, paths[:1], (1.0,), folder / "one" / row.out)
    two, seen = _error(row, paths, WEIGHTS, folder / "two" / row.out)
    return {"format": row.name, "read by": row.reader, ONE: one, TWO: two, SEEN: seen}


def _error(
    row: Row, paths: Sequence[Path], weights: Sequence[float], out: Path
) -> tuple[float, str]:
    """Return the largest error, relative to each change, and "n of n"."""
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    expected = row.read(paths, weights)
    rank = row.rank if len(paths) > 1 else None
    gm.merge(paths, method="mean", weights=weights, rank=rank, out=out)
    merged = row.read([out], (1.0,))
    return _largest(merged, expected), f"{len(merged)} of {len(expected)}"


def _largest(actual: Changes, expected: Changes) -> float:
    """Return the largest relative error; a change that is missing counts as zero."""
    worst = 0.0
    for name, change in expected.items():
        found = actual.get(name)
        error = change if found is None else found - change
        worst = max(worst, float(error.norm() / change.norm()))
    return worst
