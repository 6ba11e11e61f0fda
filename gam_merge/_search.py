"""Searches settings of a recipe for the best score, which the user computes.

Deterministic: a search that continues after an interruption tries the same settings again and finds
their scores in its journal.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf, isfinite
from os import PathLike
from pathlib import Path
from typing import Literal

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
    """The result of ``search``: all trials, and the recipe of the best one as a file.

    There is also a figure if the extra ``plot`` is installed.

    Example:
        >>> result = gm.merge(["examples/adapters/addition"], out="merged")
        >>> recipe = "merged/gam_merge_recipe.yaml"
        >>> vary = ["params.scale=1:2"]
        >>> found = gm.search(recipe, lambda adapter: 1.0, "runs", vary=vary, trials=2)
        >>> len(found.trials), found.recipe
        (2, PosixPath('runs/best.yaml'))
    """

    trials: tuple[Trial, ...]
    best: Trial
    recipe: Path
    plot: Path | None


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

    A trial that fails counts as worse than all others. A second call with the same arguments
    continues where the first one ended.

    Example:
        >>> adapters = ["examples/adapters/addition", "examples/adapters/sorting"]
        >>> result = gm.merge(adapters, method="mean", out="merged")
        >>> recipe = "merged/gam_merge_recipe.yaml"
        >>> def norm(adapter):
        ...     return gm.inspect(adapter).total.norm
        >>> found = gm.search(recipe, norm, "runs", vary=["weights"], trials=3, goal="max")
        >>> found.best.score == max(trial.score for trial in found.trials)
        True

    Args:
        recipe: a recipe file; see ``merge_recipe``.
        evaluate: a function from the directory of an adapter to its score, or a command with
            ``{adapter}`` in place of the directory. A command runs without a shell, and the last
            word that it prints is the score.
        out: the directory for the journal ``trials.jsonl``, for ``best.yaml`` and ``trials.png``.
        trials: upper limit for the number of trials.
        vary: the settings to search: ``weights``, ``anchor``, ``params.NAME`` within its range, or
            ``KEY=LOW:HIGH``.
        goal: whether the best score is the largest or the smallest.
        seed: seed of the sampled settings.
        overrides: settings that replace those of the recipe; see ``merge_recipe``.
        device: where the merges compute: "auto", "cpu", "cuda", ...
        progress: called with the number of trials done and ``trials``.

    Returns:
        All trials, the best one, and the file with its recipe.

    Raises:
        GamMergeError: if the first trial fails, or an argument does not fit the recipe.
    """
    file, folder = Path(recipe), Path(out)
    last, _ = read_recipes(file, overrides)[-1]
    space = make_space(last, vary)
    command: str | None = None
    if isinstance(evaluate, str):
        command, evaluate = evaluate, command_score(evaluate)
    about = {
        "recipe": sha256(file),
        "overrides": list(overrides),
        "vary": list(vary),
        "goal": goal,
        "seed": seed,
        "evaluate": command,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GamMergeError(f"{folder}: cannot be created: {error.strerror}") from error
    journal = Journal(folder / "trials.jsonl", about)
    bench = _Bench(
        file, folder, journal, evaluate, tuple(overrides), goal, trials, device, progress
    )
    with suppress(_Spent):
        optimise(lambda point: bench.loss(space.overrides(point.tolist())), space.start(last), seed)
    plot = _plot(folder, journal.trials, goal)
    return SearchResult(tuple(journal.trials), bench.best, folder / "best.yaml", plot)


def _plot(folder: Path, trials: Sequence[Trial], goal: str) -> Path | None:
    """Write ``trials.png`` if matplotlib is installed."""
    try:
        from gam_merge._trials.figures import trials_png
    except ImportError:
        return None
    return write_file(folder / "trials.png", trials_png(trials, goal))


class _Spent(Exception):
    """The limit of trials is reached."""


@dataclass(frozen=True)
class _Bench:
    """Merges and scores settings, and remembers the trials."""

    recipe: Path
    folder: Path
    journal: Journal
    evaluate: Evaluate
    overrides: tuple[str, ...]
    goal: Literal["max", "min"]
    trials: int
    device: str | torch.device
    progress: Progress | None

    def loss(self, changes: tuple[str, ...]) -> float:
        """Return the loss to minimise.

        Raises _Spent, and GamMergeError if the first trial fails.
        """
        trial = self._trial(changes)
        if trial.score is not None:
            return self._loss(trial.score)
        # A failure is as far above the worst trial before it as that is above the best.
        earlier = self.journal.trials[: trial.number]
        losses = [self._loss(trial.score) for trial in earlier if trial.score is not None]
        return max(losses) + (max(losses) - min(losses) or 1.0)

    @property
    def best(self) -> Trial:
        """The first trial with the best score."""
        return min(self.journal.trials, key=lambda trial: self._loss(trial.score))

    def _loss(self, score: float | None) -> float:
        if score is None:
            return inf
        return -score if self.goal == "max" else score

    def _trial(self, changes: tuple[str, ...]) -> Trial:
        """Return the trial of these settings, a new one unless the journal has it."""
        for trial in self.journal.trials:
            if trial.overrides == changes:
                return trial
        if len(self.journal.trials) >= self.trials:
            raise _Spent
        trial = self._try(changes)
        if self.progress:
            self.progress(len(self.journal.trials), self.trials)
        return trial

    def _try(self, changes: tuple[str, ...]) -> Trial:
        with tempfile.TemporaryDirectory(prefix=".trial-", dir=self.folder) as temporary:
            out, overrides = Path(temporary, "adapter"), (*self.overrides, *changes)
            try:
                result = merge_recipe(self.recipe, overrides=overrides, out=out, device=self.device)
                score = float(self.evaluate(out))
                if not isfinite(score):
                    raise GamMergeError(f"the score is {score}")
            except GamMergeError as error:
                if not self.journal.trials:
                    raise GamMergeError(
                        f"the first trial failed, so the search ends: {error}"
                    ) from None
                return self.journal.add(changes, None, str(error))
        losses = [self._loss(trial.score) for trial in self.journal.trials]
        if self._loss(score) < min(losses, default=inf):
            recipe = recipe_text(result.record, self.folder)
            write_file(self.folder / "best.yaml", recipe.encode())
        return self.journal.add(changes, score, None)
