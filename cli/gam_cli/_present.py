"""What verbs print with: consoles, names made harmless, numbers, tables, JSON, errors and the progress bar.

Results go to stdout, progress and errors to stderr. Names come from strangers' files: they are shown as ``Name``, never
interpolated into markup.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.filesize import decimal
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

_SHORTEST_NAME = 16  # cells that a name keeps in a crowded table


def console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is: no markup, no emoji codes, no highlighting."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def printable(text: str) -> str:
    """The text on one line, its control characters and escape sequences spelled out: ESC becomes \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shorten(text: str, width: int) -> str:
    """At most ``width`` cells of the text, its middle left out: the ends of a path tell most."""
    if cell_len(text) <= width:
        return text
    head = max(0, width - 3) // 3
    tail = set_cell_size(text[::-1], max(0, width - 3 - head))[::-1]
    return set_cell_size(text, head) + "..." + tail


@dataclass(frozen=True)
class Name:
    """A name from a file or from the user: inert, on one line, shortened in the middle where there is no room."""

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        length = cell_len(printable(self.text))
        return Measurement(min(length, _SHORTEST_NAME), length)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(shorten(printable(self.text), options.max_width), no_wrap=True, overflow="crop")


def table(*headers: str) -> Table:
    """An empty table of the house style: names in the first column, which alone gives way, numbers in the others."""
    gap = (0, 1, 0, 0)  # to the right of a cell; the box adds another
    result = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=gap, header_style="bold", border_style="dim")
    result.add_column(headers[0])
    for header in headers[1:]:
        result.add_column(header, justify="right", no_wrap=True)
    return result


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:#.4g}".removesuffix(".")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def count(number: int, noun: str) -> str:
    """1 adapter, 2 adapters."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def span(values: Sequence[int]) -> str:
    """16, or 8..16 where they differ."""
    low, high = min(values, default=0), max(values, default=0)
    return f"{low}" if low == high else f"{low}..{high}"


def size(nbytes: int) -> str:
    return decimal(nbytes)


def warning(text: str) -> Text:
    return Text.assemble(("warning: ", "yellow"), printable(text))


def print_json(data: Any) -> None:
    """JSON alone on stdout, in ASCII: no name in it reaches the terminal raw."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def json_line(value: Any) -> str:
    """A value as it is written in JSON, on one line."""
    return json.dumps(value, ensure_ascii=False)


def print_error(error: Exception) -> None:
    """One line on stderr, however long."""
    line = Text.assemble(("error: ", "bold red"), printable(str(error)))
    console(stderr=True).print(line, soft_wrap=True)


@contextmanager
def progress_bar(label: str, unit: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, gone when done; nothing unless stderr is a terminal. Yields the callback (done, in all)."""
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn())
    shown = sys.stderr.isatty() and not quiet
    with Progress(*columns, console=console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def show(data: Any, lines: Iterable[RenderableType], *, as_json: bool, quiet: bool) -> None:
    """The result of a verb on stdout: as JSON, or in lines and tables, or not at all."""
    if quiet:
        return
    if as_json:
        print_json(data)
        return
    stdout = console()
    for line in lines:
        stdout.print(line, soft_wrap=not isinstance(line, Table))
