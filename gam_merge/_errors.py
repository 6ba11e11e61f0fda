"""The one exception family of the library."""

from collections.abc import Iterator
from contextlib import contextmanager


class GamMergeError(Exception):
    """A known failure: one line that names adapter, module and shapes where there are any, and the remedy."""


@contextmanager
def collecting(problems: list[str] | None) -> Iterator[None]:
    """Add an error of the block to ``problems`` and go on after it; without a list it is raised as ever."""
    try:
        yield
    except GamMergeError as error:
        if problems is None:
            raise
        problems.append(str(error))
