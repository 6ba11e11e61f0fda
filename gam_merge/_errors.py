"""The one exception family of the library."""

from collections.abc import Iterator
from contextlib import contextmanager


class GamMergeError(Exception):
    """A known failure: one line that names adapter, module and shapes where there are any, and the remedy.

    Names come from strangers' files: what is not printable in them is spelled out, a newline as \\n.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


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
