"""What verbs print with: consoles, names made harmless, numbers, tables, JSON, errors and the progress bar.

Results go to stdout, progress and errors to stderr. Names come from strangers' files: they are shown as ``Name``, never
interpolated into markup.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.filesize import decimal
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

_BOX = box.Box(
    "    \n    \n ── \n    \n ── \n    \n    \n    \n"
)  # rules below the headers and between sections
_SHORTEST_NAME = 16  # cells that a name keeps in a crowded table


def console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is: no markup, no emoji codes, no highlighting."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def printable(text: str) -> str:
    """The text on one line, its control characters and escape sequences spelled out: ESC becomes \\x1b. The library
    has the same for its errors; from there it would bring torch along."""
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


def numbered(position: int, source: str) -> Name:
    """An adapter of several, with the position by which options and warnings name it."""
    return Name(f"{position}  {source}")


def table(*headers: str) -> Table:
    """An empty table of the house style: names in the first column, which alone gives way, numbers in the others."""
    result = Table(
        box=_BOX, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, border_style="dim"
    )
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


def duration(seconds: float) -> str:
    """0.3 s, 12 s, 3 min."""
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def size(nbytes: int) -> str:
    return decimal(nbytes)


def wrote(path: Path, seconds: float) -> str:
    """The closing line of a verb that wrote a directory."""
    nbytes = sum(file.stat().st_size for file in path.iterdir())
    return f"wrote {printable(str(path))}: {size(nbytes)} in {seconds:.1f} s"


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
def progress_bar(
    label: str, unit: str, *, quiet: bool = False
) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr from the first call to the last, then gone; nothing unless stderr is a terminal.

    Yields the callback (done, in all). While it is not called the terminal is left to others, such as downloads.
    """
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=console(stderr=True), transient=True)
    shown = sys.stderr.isatty() and not quiet
    task = bar.add_task("", total=None)

    def advance(done: int, total: int) -> None:
        if shown:
            bar.start()
            bar.update(task, completed=done, total=total)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()


def silence_downloads() -> None:
    """No bars and no hints from huggingface_hub, for a quiet run."""
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    logging.set_verbosity_error()


def save_documents(found: Any, *, plot: Path | None, html: Path | None) -> list[str]:
    """Write the figure and the report that were asked for; what to say about it."""
    saved = [found.save_plot(plot)] if plot else []
    saved += [found.save_html(html)] if html else []
    return [f"wrote {printable(str(path))}: {size(path.stat().st_size)}" for path in saved]


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
