"""The journal of a search: one line of JSON per trial, on the disk before the next begins."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import is_there, read_text


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


class _Line(BaseModel):
    """A trial as it stands in the file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    number: int
    overrides: list[str]
    score: Annotated[float, Field(allow_inf_nan=False)] | None
    error: str | None


class Journal:
    """Trials in the order in which they were made. A file that exists is continued.

    ``about`` describes the search; a journal of another one is an error. Raises GamMergeError.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        self.trials: list[Trial] = []
        lines = list(_lines(path)) if is_there(path) else []
        if not lines:
            self._append(about)
            return
        first = _parsed(path, 1, lines[0])
        if first != about:
            raise GamMergeError(
                f"{path}: belongs to a search with another {_changed(first, about)}; choose "
                "another directory"
            )
        for i, line in enumerate(lines[1:]):
            self.trials.append(_trial(path, i, line))

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


def _changed(first: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Return the names of the fields in which two searches differ."""
    names = [name for name in {*first, *about} if first.get(name) != about.get(name)]
    return ", ".join(sorted(names))


def _lines(path: Path) -> Iterator[str]:
    """Yield every whole line; half a line at the end, of a process that was killed, is cut off."""
    content = read_text(path)
    whole = content[: content.rfind("\n") + 1]
    if len(whole) < len(content):
        try:
            os.truncate(path, len(whole.encode()))
        except OSError as error:
            raise GamMergeError(f"{path}: cannot be written: {error.strerror}") from error
    yield from whole.split("\n")[:-1]


def _trial(path: Path, i: int, line: str) -> Trial:
    """Return trial ``i``, from line ``i + 2``. Raises GamMergeError."""
    try:
        trial = _Line.model_validate(_parsed(path, i + 2, line))
    except ValidationError as error:
        raise _not_a_journal(path, i + 2) from error
    fails = i == 0 and trial.score is None  # a search ends there
    if trial.number != i or fails:
        raise _not_a_journal(path, i + 2)
    return Trial(i, tuple(trial.overrides), trial.score, trial.error)


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    """Return the object that a line holds. Raises GamMergeError."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _not_a_journal(path, number) from error
    if not isinstance(content, dict):
        raise _not_a_journal(path, number)
    return content


def _not_a_journal(path: Path, number: int) -> GamMergeError:
    return GamMergeError(
        f"{path}: line {number} is not the journal of a search; choose another directory"
    )
