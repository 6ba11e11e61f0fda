"""The table of docs/benchmarks.md from the committed results."""

import json
from typing import Any

from benchmarks import page
from benchmarks.measure import RESULTS, table

FILE = RESULTS / "nightly.json"


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text("utf-8"))


def tables(results: dict[str, Any]) -> str:
    rows: list[dict[str, Any]] = []
    for row in results["rows"]:
        rows.append({column: row[column] for column in ("what", "cases", "found", "lost")})
    return table(rows)


def write() -> None:
    """Write the table into the page."""
    page.write("nightly", tables(read()))
