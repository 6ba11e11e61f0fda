"""The table of the README from the committed results."""

import json
from typing import Any

from benchmarks import page
from benchmarks.measure import RESULTS, table

FILE = RESULTS / "nightly.json"


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text("utf-8"))


def tables(results: dict[str, Any]) -> str:
    return table(
        [
            {column: row[column] for column in ("what", "cases", "found", "lost")}
            for row in results["rows"]
        ]
    )


def write() -> None:
    """Into the README."""
    page.write("nightly", tables(read()))
