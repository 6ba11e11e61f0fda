"""The figure of a search: the score of every trial."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gam_merge._diagnose.drawing import finish, png
from gam_merge._trials.journal import Trial


def trials_png(trials: Sequence[Trial], goal: str) -> bytes:
    """Draw the score of every trial, and the best so far, as a PNG."""
    return png(lambda axes: _trials(axes, trials, goal), (8.0, 4.0))


def _trials(axes: Axes, trials: Sequence[Trial], goal: str) -> None:
    scored = [(trial.number, trial.score) for trial in trials if trial.score is not None]
    numbers, scores = np.array(scored).T
    best = (np.maximum if goal == "max" else np.minimum).accumulate(scores)
    axes.scatter(numbers, scores, s=14, color="#808080", label="trial")
    axes.step(numbers, best, where="post", color="#e0853d", linewidth=1.6, label="best so far")
    for trial in trials:
        if trial.score is None:
            axes.axvline(trial.number, color="#cf5f5f", linewidth=0.8, alpha=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axes, "search", "trial (thin line: failed)", "score")
