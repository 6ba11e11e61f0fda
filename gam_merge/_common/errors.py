"""The one exception family of the library."""

from collections.abc import Iterator
from contextlib import contextmanager


class GamMergeError(Exception):
    """A known failure: one line that names adapter, module and shapes where there are any, and the remedy.

    Names come from strangers' files: what is not printable in them is spelled out, a newline as \\n, and the middle of
    what is too long for a line is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(_bounded(message)))


_BEGINNING, _END = 2000, 1000  # characters of a message: what it is about, and the remedy


def _bounded(message: str) -> str:
    """The message, without its middle if that is long: a name from a file may have a million characters."""
    hidden = len(message) - _BEGINNING - _END
    return (
        message
        if hidden <= 0
        else f"{message[:_BEGINNING]} ({hidden} characters) {message[-_END:]}"
    )


def printable(text: str) -> str:
    """The text on one line, its control characters and escape sequences spelled out: ESC becomes \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def collecting(problems: list[str] | None) -> Iterator[None]:
    """Add an error of the block to ``problems`` and go on after it; without a list it is raised as ever."""
    try:
        yield
    except GamMergeError as error:
        if problems is None:
            raise
        problems.append(str(error))
