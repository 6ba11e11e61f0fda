"""Tables in a page of text, each between the marker of its benchmark and the next end."""

import json
from pathlib import Path

from benchmarks.measure import RESULTS, measured_on, table

PAGE = RESULTS.parents[1] / "docs" / "benchmarks.md"
_END = "<!-- end -->\n"


def replaced(page: str, name: str, tables: str) -> str:
    """Return the page with new tables of ``python -m benchmarks NAME``.

    Raises ValueError if the page lacks the markers of that benchmark.
    """
    begin = f"<!-- python -m benchmarks {name} -->\n"
    before, marker, rest = page.partition(begin)
    _, end, after = rest.partition(_END)
    if not (marker and end):
        raise ValueError(f"no {begin.strip()} with an end after it")
    return f"{before}{begin}\n{tables}\n\n{_END}{after}"


def of_rows(name: str) -> str:
    """Return the table of benchmarks/results/NAME.json, and on what it was measured."""
    results = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return f"{measured_on(results['machine'])}.\n\n{table(results['rows'])}"


def write_rows(name: str) -> None:
    """Replace the table of a benchmark that is its saved rows."""
    write(name, of_rows(name))


def write(name: str, tables: str, page: Path = PAGE) -> None:
    """Replace them in a file."""
    page.write_text(replaced(page.read_text("utf-8"), name, tables), "utf-8")
