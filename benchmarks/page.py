"""Tables in a page of text, each between the marker of its benchmark and the next end."""

from pathlib import Path

from benchmarks.measure import RESULTS

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


def write(name: str, tables: str, page: Path = PAGE) -> None:
    """Replace them in a file."""
    page.write_text(replaced(page.read_text("utf-8"), name, tables), "utf-8")
