"""``python -m benchmarks variants``: measure all kinds, or only write the page from the results."""

import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers.utils import logging

from benchmarks.measure import save, table
from benchmarks.variants import report
from benchmarks.variants.measure import PEFT_TYPES, Measured, by_mergekit
from benchmarks.variants.rows import ROWS


def main(*, mergekit: Path | None, page: bool) -> None:
    """Write benchmarks/results/variants.json and docs/variants.md.

    mergekit: the Python of an environment with mergekit.
    """
    if not page:
        with tempfile.TemporaryDirectory() as folder:
            _measure(Path(folder), mergekit)
    report.PAGE.write_text(report.page(report.read()), "utf-8")


def _measure(folder: Path, mergekit: Path | None) -> None:
    logging.disable_progress_bar()
    measured = {row.name: Measured(row, folder / str(i)) for i, row in enumerate(ROWS)}
    peer_version, of_mergekit = by_mergekit(mergekit, measured, folder)
    rows: list[dict[str, Any]] = []
    for name, each in measured.items():
        by_peft = {f"PEFT {kind}": each.error(partial(each.by_peft, kind)) for kind in PEFT_TYPES}
        rows.append(
            {
                "adapters": name,
                **by_peft,
                "mergekit": of_mergekit[name],
                "gam-merge": each.error(each.by_us),
            }
        )
    versions = {name: version(name) for name in ("gam-merge", "peft", "transformers", "torch")}
    if peer_version:
        versions["mergekit"] = peer_version
    print(table(rows))
    print(save("variants", rows, versions=versions))
