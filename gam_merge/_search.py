"""Settings of a recipe, searched against a score that the user computes.

Deterministic: a search that goes on after an interruption asks the same questions and finds answers in its journal.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import sha256, write_file
from gam_merge._common.types import Progress
from gam_merge._recipe import merge_recipe
from gam_merge._recipes.file import read_recipes
from gam_merge._trials.journal import Journal, Trial
from gam_merge._trials.optimise import optimise
from gam_merge._trials.score import command_score
from gam_merge._trials.space import make_space
from gam_merge._write.provenance import recipe_text

Evaluate = Callable[[Path], float]  # the directory of an adapter -> its score


@dataclass(frozen=True)
class SearchResult:
    """Every trial, the recipe of the best one as a file, and a figure if the extra ``plot`` is there."""

    trials: tuple[Trial, ...]
    best: Trial
    recipe: Path
    plot: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "best": asdict(self.best),
            "recipe": str(self.recipe),
            "trials": [asdict(trial) for trial in self.trials],
        }


def search(
    recipe: str | PathLike[str],
    evaluate: str | Evaluate,
    out: str | PathLike[str],
    *,
    trials: int = 40,
    vary: Sequence[str] = ("weights",),
    goal: Literal["max", "min"] = "max",
    seed: int = 0,
    overrides: Sequence[str] = (),
    device: str | torch.device = "auto",
    progress: Progress | None = None,
) -> SearchResult:
    """Search settings of a recipe for the best score.

    evaluate: a function of the directory of an adapter, or a command with ``{adapter}`` in it, run without a shell, the
    last word of whose output is the score. out: a directory for the journal ``trials.jsonl``, which a second call goes
    on with, ``best.yaml`` and ``trials.png``. vary: ``weights``, ``anchor``, ``params.NAME``, ``KEY=LOW:HIGH``.
    overrides: over the recipe, as in ``merge_recipe``. progress: called with (trials done, in all).

    A trial that fails counts as worse than all; if the first one fails, so does the search. Raises GamMergeError.
    """
    file, home = Path(recipe), Path(out)
    last = read_recipes(file, overrides)[-1][0]
    space = make_space(last, vary)
    about = {
        "recipe": sha256(file),
        "overrides": list(overrides),
        "vary": list(vary),
        "goal": goal,
        "seed": seed,
    }
    score = command_score(evaluate) if isinstance(evaluate, str) else evaluate
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GamMergeError(f"{home}: cannot be made: {error.strerror}") from error
    journal = Journal(
        home / "trials.jsonl",
        {**about, "evaluate": evaluate if isinstance(evaluate, str) else None},
    )
    bench = _Bench(file, home, journal, score, tuple(overrides), goal, trials, device, progress)
    with suppress(_Spent):
        optimise(lambda point: bench.loss(space.overrides(point.tolist())), space.start(last), seed)
    return SearchResult(
        tuple(journal.trials), bench.best, home / "best.yaml", _plot(home, journal.trials, goal)
    )


def _plot(home: Path, trials: Sequence[Trial], goal: str) -> Path | None:
    """``trials.png``, where matplotlib is installed."""
    try:
        from gam_merge._trials.figures import trials_png
    except ImportError:
        return None
    return write_file(home / "trials.png", trials_png(trials, goal))


class _Spent(Exception):
    """There are as many trials as there may be, or nothing new to try."""


@dataclass(frozen=True)
class _Bench:
    """Merges, scores, and remembers."""

    recipe: Path
    home: Path
    journal: Journal
    evaluate: Evaluate
    overrides: tuple[str, ...]
    goal: Literal["max", "min"]
    trials: int
    device: str | torch.device
    progress: Progress | None

    def loss(self, changes: tuple[str, ...]) -> float:
        """What is minimised. Raises _Spent, and GamMergeError if the first trial fails."""
        known = next((trial for trial in self.journal.trials if trial.overrides == changes), None)
        if known is None:
            if len(self.journal.trials) >= self.trials:
                raise _Spent
            known = self._try(changes)
            if self.progress:
                self.progress(len(self.journal.trials), self.trials)
        if known.score is not None:
            return self._sign * known.score
        losses = [
            self._sign * t.score for t in self.journal.trials[: known.number] if t.score is not None
        ]
        return max(losses) + (max(losses) - min(losses) or 1.0)

    @property
    def best(self) -> Trial:
        """The first of those with the best score."""
        return min(self._scored, key=lambda trial: self._sign * (trial.score or 0.0))

    @property
    def _scored(self) -> list[Trial]:
        return [trial for trial in self.journal.trials if trial.score is not None]

    @property
    def _sign(self) -> float:
        return -1.0 if self.goal == "max" else 1.0

    def _try(self, changes: tuple[str, ...]) -> Trial:
        with tempfile.TemporaryDirectory(prefix=".trial-", dir=self.home) as folder:
            try:
                all_changes = (*self.overrides, *changes)
                result = merge_recipe(
                    self.recipe,
                    overrides=all_changes,
                    out=Path(folder, "adapter"),
                    device=self.device,
                )
                score = float(self.evaluate(Path(folder, "adapter")))
                if not isfinite(score):
                    raise GamMergeError(f"the score is {score}")
            except GamMergeError as error:
                if not self.journal.trials:
                    raise GamMergeError(
                        f"the first trial fails, and with it the search: {error}"
                    ) from None
                return self.journal.add(changes, None, str(error))
        if not self._scored or self._sign * score < self._sign * (self.best.score or 0.0):
            write_file(self.home / "best.yaml", recipe_text(result.record, self.home).encode())
        return self.journal.add(changes, score, None)
