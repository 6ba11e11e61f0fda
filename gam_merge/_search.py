"""``search``: settings of a recipe, searched for the best score that the user computes.

Deterministic: a search that goes on after an interruption asks the same questions and finds answers
in its journal.
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
from gam_merge._read.record import Record
from gam_merge._recipe import merge_recipe
from gam_merge._recipes.file import read_recipes
from gam_merge._trials.journal import Journal, Trial
from gam_merge._trials.optimise import optimise
from gam_merge._trials.score import command_score
from gam_merge._trials.space import make_space
from gam_merge._write.provenance import recipe_text

Evaluate = Callable[[Path], float]  # the directory of an adapter -> its score
Goal = Literal["max", "min"]


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        trials: every trial, in order.
        best: the first of those with the best score.
        recipe: a file with the recipe of the best one.
        plot: a figure, if the extra ``plot`` is installed.

    Example:
        >>> result = gm.search("merge.yaml", evaluate, "search")  # doctest: +SKIP
        >>> result.best.score, result.recipe  # doctest: +SKIP
        (0.71, PosixPath('search/best.yaml'))
    """

    trials: tuple[Trial, ...]
    best: Trial
    recipe: Path
    plot: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
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
    goal: Goal = "max",
    seed: int = 0,
    overrides: Sequence[str] = (),
    device: str | torch.device = "auto",
    progress: Progress | None = None,
) -> SearchResult:
    """Search settings of a recipe for the best score.

    Args:
        recipe: a YAML file.
        evaluate: a function from the directory of an adapter to its score; or a command with
            ``{adapter}`` in it, run without a shell, whose last word of output is the score.
        out: a directory for the journal ``trials.jsonl``, which a second call continues,
            ``best.yaml`` and ``trials.png``.
        trials: upper limit for the number of merges.
        vary: ``weights``, ``anchor``, ``params.NAME`` or ``KEY=LOW:HIGH``.
        goal: ``"max"`` or ``"min"``.
        seed: for the first points.
        overrides: settings over the recipe, ``key.key=value``.
        device: ``"auto"`` takes a GPU if there is one.
        progress: called with (trials done, trials in all).

    Returns:
        SearchResult: every trial, the best one and its recipe.

    Raises:
        GamMergeError: if the first trial fails. A later one that fails counts as worse than all.

    Example:
        >>> from pathlib import Path
        >>> first, second = "examples/adapters/addition", "examples/adapters/sorting"
        >>> text = f"sources: [{{path: {first}}}, {{path: {second}}}]"
        >>> _ = Path("merge.yaml").write_text(text)
        >>> def size(adapter):
        ...     deltas = gm.load(adapter).modules["model.layers.0.mlp.up_proj"].delta()
        ...     return float(deltas.norm())
        >>> result = gm.search("merge.yaml", size, "search", trials=3, goal="min")
        >>> len(result.trials), result.recipe.name
        (3, 'best.yaml')
    """
    if trials < 1:
        raise GamMergeError(f"trials must be at least 1, got {trials}")
    file, home = Path(recipe), Path(out)
    last, _ = read_recipes(file, overrides)[-1]
    space = make_space(last, vary)
    about = {
        "recipe": sha256(file),
        "overrides": list(overrides),
        "vary": list(vary),
        "goal": goal,
        "seed": seed,
        "evaluate": evaluate if isinstance(evaluate, str) else None,
    }
    score = command_score(evaluate) if isinstance(evaluate, str) else evaluate
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GamMergeError(f"{home}: cannot be created: {error.strerror}") from error
    journal = Journal(home / "trials.jsonl", about)
    earlier = len(journal.trials)
    bench = _Bench(file, home, journal, score, tuple(overrides), goal, trials, device, progress)
    with suppress(_Spent):
        optimise(lambda point: bench.loss(space.overrides(point.tolist())), space.start(last), seed)
    if bench.best.number < earlier:  # best.yaml may be gone, or of another trial
        bench.keep(merge_recipe(file, overrides=bench.settings(bench.best), device=device).record)
    plot = _plot(home, journal.trials, goal)
    return SearchResult(tuple(journal.trials), bench.best, home / "best.yaml", plot)


def _plot(home: Path, trials: Sequence[Trial], goal: Goal) -> Path | None:
    """Write ``trials.png``, where matplotlib is installed."""
    try:
        from gam_merge._trials.figures import trials_png
    except ImportError:
        return None
    return write_file(home / "trials.png", trials_png(trials, goal))


class _Spent(Exception):
    """All trials are used up."""


@dataclass(frozen=True)
class _Bench:
    """Merges, scores, and remembers."""

    recipe: Path
    home: Path
    journal: Journal
    evaluate: Evaluate
    overrides: tuple[str, ...]
    goal: Goal
    trials: int
    device: str | torch.device
    progress: Progress | None

    def loss(self, changes: tuple[str, ...]) -> float:
        """Return the loss of some settings: the score, or worse than all before if there is none.

        Raises _Spent, and GamMergeError if the first trial fails.
        """
        trial = self._trial(changes)
        if trial.score is not None:
            return self._sign * trial.score
        losses: list[float] = []
        for earlier in self.journal.trials[: trial.number]:
            if earlier.score is not None:
                losses.append(self._sign * earlier.score)
        return max(losses) + (max(losses) - min(losses) or 1.0)

    def _trial(self, changes: tuple[str, ...]) -> Trial:
        """Return the trial of some settings: from the journal, or made now."""
        for trial in self.journal.trials:
            if trial.overrides == changes:
                return trial
        if len(self.journal.trials) >= self.trials:
            raise _Spent
        trial = self._try(changes)
        if self.progress:
            self.progress(len(self.journal.trials), self.trials)
        return trial

    def settings(self, trial: Trial) -> tuple[str, ...]:
        """Return what a trial sets over the recipe."""
        return (*self.overrides, *trial.overrides)

    def keep(self, record: Record) -> None:
        """Write ``best.yaml``: the recipe of the best merge."""
        write_file(self.home / "best.yaml", recipe_text(record, self.home).encode())

    @property
    def best(self) -> Trial:
        """The first of the trials with the best score."""
        return min(self._scored, key=lambda trial: self._sign * (trial.score or 0.0))

    @property
    def _scored(self) -> list[Trial]:
        return [trial for trial in self.journal.trials if trial.score is not None]

    @property
    def _sign(self) -> float:
        return -1.0 if self.goal == "max" else 1.0

    def _try(self, changes: tuple[str, ...]) -> Trial:
        """Merge with some settings, score the result, and write it down."""
        with tempfile.TemporaryDirectory(prefix=".trial-", dir=self.home) as folder:
            adapter = Path(folder, "adapter")
            try:
                settings = (*self.overrides, *changes)
                result = merge_recipe(
                    self.recipe, overrides=settings, out=adapter, device=self.device
                )
                score = float(self.evaluate(adapter))
                if not isfinite(score):
                    raise GamMergeError(f"the score must be finite, got {score}")
            except GamMergeError as error:
                if not self.journal.trials:
                    raise GamMergeError(
                        f"the first trial fails, and with it the search: {error}"
                    ) from None
                return self.journal.add(changes, None, str(error))
        if not self._scored or self._sign * score < self._sign * (self.best.score or 0.0):
            self.keep(result.record)
        return self.journal.add(changes, score, None)
