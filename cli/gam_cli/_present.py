"""The printing of all verbs: their frame, names made harmless, numbers, tables, JSON and errors.

Results go to stdout, progress and errors to stderr. Names come from untrusted files: they are shown
as ``Name``, never interpolated into markup.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.filesize import decimal
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

# rules below the headers and between sections
_BOX = box.Box("    \n    \n ── \n    \n ── \n    \n    \n    \n")
_RETRIES = ("huggingface_hub.utils._http", "huggingface_hub.file_download")  # loggers that say so
_SHORTEST_NAME = 16  # cells that a name keeps in a crowded table


@dataclass(frozen=True)
class Run:
    """A verb at work: where it reports progress, and when it began."""

    progress: Callable[[int, int], None]  # (done, in all)
    start: float

    @property
    def seconds(self) -> float:
        """The time since the verb began."""
        return perf_counter() - self.start


@contextmanager
def running(
    label: str = "", unit: str = "", *, quiet: bool, verbose: bool = False
) -> Iterator[Run]:
    """The frame of every verb: takes the time and shows a progress bar; downloads obey ``quiet``.

    Only ``verbose`` shows each attempt of a download that is tried again.

    The bar is on stderr from the first call of ``progress`` to the end, then gone; there is none
    unless stderr is a terminal. Until the first call the terminal is left to downloads.
    """
    if quiet:
        _silence_downloads()
    for name in _RETRIES:
        logging.getLogger(name).setLevel(logging.NOTSET if verbose else logging.ERROR)
    shown = sys.stderr.isatty() and not quiet
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=console(stderr=True), transient=True)
    task = bar.add_task("", total=None)

    def progress(done: int, total: int) -> None:
        if shown:
            bar.start()
            bar.update(task, completed=done, total=total)

    try:
        yield Run(progress, perf_counter())
    finally:
        if bar.live.is_started:
            bar.stop()


def _silence_downloads() -> None:
    """Turn off the progress bars and hints of huggingface_hub."""
    from huggingface_hub.utils.logging import set_verbosity_error
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    set_verbosity_error()


def show(result: Any, lines: Iterable[RenderableType], *, as_json: bool, quiet: bool) -> None:
    """Print the result of a verb on stdout: as JSON, as lines and tables, or not at all.

    ``result`` is JSON data; objects in it are asked for theirs by ``to_dict``.
    """
    if quiet:
        return
    if as_json:
        _print_json(result)
        return
    stdout = console()
    for line in lines:
        stdout.print(line, soft_wrap=not isinstance(line, Table))


def show_pages(lines: Iterable[RenderableType]) -> None:
    """Print lines and tables on stdout, through the user's pager if that is a terminal."""
    stdout = console()
    with stdout.pager():
        for line in lines:
            stdout.print(line)


def _print_json(result: Any) -> None:
    """JSON alone on stdout, in ASCII: no name in it reaches the terminal raw."""
    text = json.dumps(result, indent=2, default=lambda value: value.to_dict())
    sys.stdout.write(text + "\n")


def print_error(error: Exception, *, known: bool, traceback: bool) -> None:
    """Print one line on stderr, however long; before it a traceback if that is asked for.

    An error that is not known is a bug: the line says how to get what a report of it needs.
    """
    stderr = console(stderr=True)
    if traceback:
        for line in _traceback_lines(error, stderr.width):
            stderr.print(line, soft_wrap=True)
    text = str(error)
    if not known:
        text = f"this is a bug: {type(error).__name__}: {text}"
    if not known and not traceback:
        text += "; GAM_MERGE_DEBUG=1 prints the traceback for a report"
    stderr.print(Text.assemble(("error: ", "bold red"), printable(text)), soft_wrap=True)


def _traceback_lines(error: Exception, width: int) -> Iterator[str]:
    """The traceback without colour: what a message in it holds stays text."""
    from rich.traceback import Traceback  # loads pygments, which takes a while

    plain = Console(width=width, color_system=None)
    with plain.capture() as captured:
        plain.print(Traceback.from_exception(type(error), error, error.__traceback__))
    yield from map(printable, captured.get().splitlines())


def save_documents(result: Any, *, plot: Path | None, html: Path | None) -> list[str]:
    """Write the figure and the report that were asked for, and return a line about each."""
    saved = []
    if plot is not None:
        saved.append(result.save_plot(plot))
    if html is not None:
        saved.append(result.save_html(html))
    return [f"wrote {printable(str(path))}: {size(path.stat().st_size)}" for path in saved]


def console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is: no markup, no emoji codes, no highlighting."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def printable(text: str) -> str:
    """The text on one line, control characters and escape sequences spelled out: ESC becomes \\x1b.

    The library does the same for its errors, by a private function.
    """
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def shorten(text: str, width: int) -> str:
    """At most ``width`` cells of the text, its middle left out: the ends of a path say most."""
    if cell_len(text) <= width:
        return text
    head = max(0, width - 3) // 3
    tail = set_cell_size(text[::-1], max(0, width - 3 - head))[::-1]
    return set_cell_size(text, head) + "..." + tail


@dataclass(frozen=True)
class Name:
    """A name from a file or the user: inert, on one line, shortened in the middle if need be."""

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        length = cell_len(printable(self.text))
        return Measurement(min(length, _SHORTEST_NAME), length)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(shorten(printable(self.text), options.max_width), no_wrap=True, overflow="crop")


def numbered(position: int, source: str) -> Name:
    """A source, after the position by which options and warnings refer to it."""
    return Name(f"{position}  {source}")


def table(*headers: str) -> Table:
    """An empty table: names in the first column, which alone gives way, numbers in the others."""
    rows = Table(
        box=_BOX, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, border_style="dim"
    )
    rows.add_column(headers[0])
    for header in headers[1:]:
        rows.add_column(header, justify="right", no_wrap=True)
    return rows


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:#.4g}".removesuffix(".")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def count(number: int, noun: str) -> str:
    """1 adapter, 2 adapters."""
    plural = "" if number == 1 else "s"
    return f"{number} {noun}{plural}"


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
    """The closing line of a verb that wrote a directory or a file."""
    files = path.iterdir() if path.is_dir() else [path]
    nbytes = sum(file.stat().st_size for file in files)
    return f"wrote {printable(str(path))}: {size(nbytes)} in {seconds:.1f} s"


def warning(text: str) -> Text:
    return Text.assemble(("warning: ", "yellow"), printable(text))


def json_line(value: Any) -> str:
    """A value as it is written in JSON, on one line."""
    return json.dumps(value, ensure_ascii=False)
