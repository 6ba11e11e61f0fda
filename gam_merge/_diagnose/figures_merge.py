"""Figures of merges and searches, as bytes of a PNG."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gam_merge._common.names import group, shortened
from gam_merge._diagnose.figures import Draw, compose, finish, line, save
from gam_merge._trials.journal import Trial


def survival_png(report: Mapping[str, Any]) -> bytes:
    """How much of each adapter survives in each layer; ``report`` as a merge wrote it."""
    return _png(lambda axes: _survival(axes, report), (8.0, 3.0))


def trials_png(trials: Sequence[Trial], goal: str) -> bytes:
    """The score of every trial, and the best so far."""
    return _png(lambda axes: _trials(axes, trials, goal), (8.0, 4.0))


def _png(draw: Draw, size: tuple[float, float]) -> bytes:
    content = BytesIO()
    save(compose({"panel": draw}, [["panel"]], size), content, "png")
    return content.getvalue()


def _survival(axes: Axes, report: Mapping[str, Any]) -> None:
    modules = report["modules"]
    layers = group([module["name"] for module in modules], "layer")
    names = shortened(report["sources"], "/")
    for i, source in enumerate(report["sources"]):
        shares = []
        for members in layers.values():
            energy = sum(modules[j]["norms"][i] ** 2 for j in members)
            shares.append(100 * sum(modules[j]["inners"][i] for j in members) / energy if energy else np.nan)
        line(axes, i, range(len(shares)), shares, f"{i} {names[source]}")
    labels = list(shortened(layers).values())
    step = -(-len(labels) // 16)
    axes.set_xticks(range(0, len(labels), step), labels[::step])
    finish(axes, "what survives of each adapter", "layer", "%")


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
