"""The table of the README from the committed results."""

import json
from typing import Any

from benchmarks.measure import RESULTS, table

FILE = RESULTS / "nightly.json"
README = RESULTS.parents[1] / "README.md"
_BEGIN, _END = "<!-- python -m benchmarks nightly -->\n", "<!-- end -->\n"


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text("utf-8"))


def page(readme: str, results: dict[str, Any]) -> str:
    """The README with the table of these results in its place."""
    before, _, rest = readme.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    rows = [{column: row[column] for column in ("what", "cases", "found", "lost")} for row in results["rows"]]
    return f"{before}{_BEGIN}\n{table(rows)}\n\n{_END}{after}"


def write() -> None:
    README.write_text(page(README.read_text("utf-8"), read()), "utf-8")
