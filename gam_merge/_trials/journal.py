"""The journal of a search: one line of JSON per trial, written before the next one begins."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gam_merge._common.errors import GamMergeError


@dataclass(frozen=True)
class Trial:
    """One merge of a search: the settings that replace the recipe's, and a score or an error.

    Example:
        >>> result = gm.merge(["examples/adapters/addition"], out="merged")
        >>> recipe = "merged/gam_merge_recipe.yaml"
        >>> vary = ["params.scale=1:2"]
        >>> gm.search(recipe, lambda adapter: 1.0, "runs", vary=vary, trials=1).best
        Trial(number=0, overrides=('params.scale=1',), score=1.0, error=None)
    """

    number: int
    overrides: tuple[str, ...]
    score: float | None
    error: str | None = None


class Journal:
    """The trials in order. An existing file is continued where it ended.

    ``about`` describes the search; the journal of another search is an error. Raises GamMergeError.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        self.trials: list[Trial] = []
        lines = list(_lines(path)) if path.exists() else []
        if not lines:
            self._append(about)
            return
        first, *trials = lines
        if first != about:
            keys = [key for key in {*about, *first} if about.get(key) != first.get(key)]
            raise GamMergeError(
                f"{path}: belongs to a search with another {', '.join(sorted(keys))}; "
                "choose another directory"
            )
        for trial in trials:
            self.trials.append(Trial(**{**trial, "overrides": tuple(trial["overrides"])}))

    def add(self, overrides: Sequence[str], score: float | None, error: str | None) -> Trial:
        """Add the next trial and return it."""
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
    """Yield every complete line; cut off half a line that a killed process left at the end."""
    try:
        content = path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            os.truncate(path, len(complete))
        for line in complete.splitlines():
            yield json.loads(line)
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise GamMergeError(
            f"{path}: is not the journal of a search; choose another directory"
        ) from error
