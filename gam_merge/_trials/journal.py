"""The journal of a search: one line of JSON per trial, on the disk before the next begins."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gam_merge._common.errors import GamMergeError


@dataclass(frozen=True)
class Trial:
    """One merge that was tried.

    Attributes:
        number: its position, from 0.
        overrides: the settings over the recipe.
        score: the score of the merge, unless it failed.
        error: why it failed.

    Example:
        >>> gm.Trial(0, ("weights.0=0.3", "weights.1=0.7"), 0.71).score
        0.71
    """

    number: int
    overrides: tuple[str, ...]
    score: float | None
    error: str | None = None


class Journal:
    """Trials in the order in which they were made. A file that exists is continued.

    ``about`` describes the search; a journal of another one is an error. Raises GamMergeError.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        self.trials: list[Trial] = []
        lines = list(_lines(path)) if path.exists() else []
        if not lines:
            self._append(about)
            return
        first, *rest = lines
        if first != about:
            raise GamMergeError(
                f"{path}: belongs to a search with another {_changed(first, about)}; choose "
                "another directory"
            )
        self.trials += [_trial(line) for line in rest]

    def add(self, overrides: Sequence[str], score: float | None, error: str | None) -> Trial:
        """Write down the next trial, and return it."""
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


def _trial(line: Mapping[str, Any]) -> Trial:
    return Trial(**{**line, "overrides": tuple(line["overrides"])})


def _changed(first: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Return the names of the fields in which two searches differ."""
    names = [name for name in {*first, *about} if first.get(name) != about.get(name)]
    return ", ".join(sorted(names))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield every whole line; half a line at the end, of a process that was killed, is cut off."""
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
            f"{path}: is not the journal of a search; choose another directory"
        ) from error
