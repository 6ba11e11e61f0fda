"""``python -m benchmarks.gpu.measure DEVICE FOLDER [--toy]``: JSON lines, most wanted first."""

import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import candidates, merges


def rows(device: torch.device, folder: Path, *, toy: bool) -> Iterator[dict[str, Any]]:
    """Yield all rows: the three rules most in use, the choice of routines, then other rules."""
    cases = merges.TOY if toy else merges.CASES
    return chain(
        merges.rows(folder, device, cases, list(merges.FIRST)),
        candidates.rows(device, toy=toy),
        merges.chunk_rows(folder, device, cases[0]),
        merges.rows(folder, device, cases, merges.others()),
    )


def main() -> None:
    device, folder, *options = sys.argv[1:]
    for row in rows(torch.device(device), Path(folder), toy="--toy" in options):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
