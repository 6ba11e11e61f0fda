"""``python -m benchmarks speed``: measure, keep what was measured, and write the tables."""

import json
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, save, table
from benchmarks.speed import accuracy, cases, peers, report


def main(folder: Path, *, repeats: int, quick: bool, page: bool) -> None:
    """Print the tables; unless quick, write the results, their plot and the page."""
    if not page:
        print(json.dumps(machine()))
        rows = _rows(folder, cases.CASES[:3] if quick else cases.CASES, repeats)
        errors = [accuracy.measure(condition) for condition in accuracy.CONDITIONS]
        print("\n" + table(rows), table(errors), sep="\n\n")
        if quick:
            return
        peer_rows = [peers.model_row(kind) for kind in peers.KINDS]
        module = peers.module_row()
        print(table(peer_rows), table([module]), sep="\n\n")
        print(save("speed", rows, repeats=repeats, errors=errors, peers=peer_rows, module=module))
    report.write()


def _rows(folder: Path, chosen: list[Any], repeats: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for case in chosen:
        rows += cases.measure(folder, *case, repeats)
        print(json.dumps(rows[-1]), flush=True)
    return rows
