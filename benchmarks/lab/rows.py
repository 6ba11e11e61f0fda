"""Result rows: one JSON object per line, appended by any process.

A line that a kill cut short is dropped.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.jsonl"
STUDIED = Path(__file__).parent / "studies" / "results.jsonl"
Row = dict[str, Any]
KEY = ("kind", "regime", "seed", "size", "method", "scale_rule", "rank")


def key(row: Row, names: Sequence[str] = KEY) -> tuple[Any, ...]:
    """Return what identifies a row: two rows of one key are the same measurement."""
    return tuple(row[name] for name in names)


def read(path: Path) -> list[Row]:
    """Return all complete rows."""
    if not path.exists():
        return []
    *lines, _cut_short = path.read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines]


def append(path: Path, row: Row) -> None:
    """Append one row, durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")), open(path, "ab+") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time in; a killed one lets go."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
