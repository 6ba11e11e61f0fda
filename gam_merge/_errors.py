"""The one exception family of the library."""


class GamMergeError(Exception):
    """A known failure: one line that names adapter, module and shapes where there are any, and the remedy."""
