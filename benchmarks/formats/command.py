"""``python -m benchmarks formats``: measure all rows, or only write the page from the results."""

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers.utils import logging

from benchmarks.formats import report
from benchmarks.formats.measure import measure
from benchmarks.formats.rows import ROWS
from benchmarks.measure import save, table


def main(*, page: bool) -> None:
    """Write benchmarks/results/formats.json and docs/formats.md."""
    if not page:
        with tempfile.TemporaryDirectory() as folder:
            _measure(Path(folder))
    report.PAGE.write_text(report.page(report.read()), "utf-8")


def _measure(folder: Path) -> None:
    logging.disable_progress_bar()
    rows: list[dict[str, Any]] = []
    packages = {"gam-merge": None, "torch": None}
    for i, row in enumerate(ROWS):
        if row.runs:
            rows.append(measure(row, folder / str(i)))
            packages |= dict.fromkeys(row.needs)
    print(table(rows))
    print(save("formats", rows, versions={name: version(name) for name in packages}))
