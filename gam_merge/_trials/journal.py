"""The journal of a search: one line of JSON a trial, written to the disk before the next begins."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gam_merge._common.errors import GamMergeError


@dataclass(frozen=True)
class Trial:
    """One merge that was tried: the settings over the recipe, and the score, or why there is none."""

    number: int
    overrides: tuple[str, ...]
    score: float | None
    error: str | None = None


class Journal:
    """Trials in the order in which they were made. A file that is there goes on where it ended.

    ``about`` says what the search is; a journal about something else is an error. Raises GamMergeError.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        lines = list(_lines(path)) if path.exists() else []
        if lines and lines[0] != about:
            changed = ", ".join(
                sorted(k for k in {*about, *lines[0]} if about.get(k) != lines[0].get(k))
            )
            raise GamMergeError(
                f"{path}: belongs to a search with another {changed}; choose another directory"
            )
        self.trials = [
            Trial(**{**line, "overrides": tuple(line["overrides"])}) for line in lines[1:]
        ]
        if not lines:
            self._append(about)

    def add(self, overrides: Sequence[str], score: float | None, error: str | None) -> Trial:
        """The next trial."""
        trial = Trial(len(self.trials), tuple(overrides), score, error)
        self._append(asdict(trial))
        self.trials.append(trial)
        return trial

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with open(self._path, "a", encoding="ascii") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise GamMergeError(f"{self._path}: cannot be written: {error.strerror}") from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line; half a line at the end, of a process that was killed, is cut off."""
    try:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        for line in whole.splitlines():
            yield json.loads(line)
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise GamMergeError(
            f"{path}: is no journal of a search; choose another directory"
        ) from error
