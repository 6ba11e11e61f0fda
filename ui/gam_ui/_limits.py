"""What visitors may take up of a server."""

from dataclasses import dataclass

_GB = 1_000_000_000


@dataclass(frozen=True)
class Limits:
    """What visitors may take up of a server.

    Attributes:
        file: the bytes of one file.
        visitor: the bytes of all that a visitor has uploaded.
        disk: the bytes of all folders together, downloads from the Hub among them. Uploads and
            downloads are refused beyond it.
        idle: the seconds after which the folder of a visitor who does nothing is removed. What the
            web server keeps of an upload goes as late.
        grace: the same for one who has closed the page, or lost the connection.
        waiting: how many actions may wait for their turn.
        at_once: how many quick actions run at once; merges take turns.
    """

    file: int = 1 * _GB
    visitor: int = 2 * _GB
    disk: int = 20 * _GB
    idle: float = 1800.0
    grace: float = 60.0
    waiting: int = 40
    at_once: int = 2
