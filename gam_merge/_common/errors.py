"""The one exception family of the library."""

from collections.abc import Iterator
from contextlib import contextmanager


class GamMergeError(Exception):
    """A known failure, in one line: adapter, module and shapes where there are any, and the remedy.

    Names come from strangers' files. Characters that are not printable are escaped, a newline as
    \\n, and a message that is too long for a line loses its middle.
    """

    __module__ = "gam_merge"  # where users import it from: tracebacks show it

    def __init__(self, message: str) -> None:
        super().__init__(printable(_bounded(message)))


_BEGINNING, _END = 2000, 1000  # characters of a message that hold its subject and its remedy


def _bounded(message: str) -> str:
    """Cut the middle out of a long message: a name from a file may have a million characters."""
    hidden = len(message) - _BEGINNING - _END
    if hidden <= 0:
        return message
    return f"{message[:_BEGINNING]} ({hidden} characters) {message[-_END:]}"


def printable(text: str) -> str:
    """Escape control characters and escape sequences: ESC becomes \\x1b, a newline \\n."""
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


@contextmanager
def collecting(problems: list[str] | None) -> Iterator[None]:
    """Add a GamMergeError of the block to ``problems`` and continue; without a list, raise it."""
    try:
        yield
    except GamMergeError as error:
        if problems is None:
            raise
        problems.append(str(error))
