"""The picture of the axes: what each delta and each merge adds to an answer."""

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from benchmarks.lab.rows import Row
from benchmarks.lab.studies.design import STUDIES
from benchmarks.lab.studies.report import AXES, Results

PICTURE = Path(__file__).parents[3] / "docs" / "axes.svg"
# title, row and scale, from the top
SUBJECTS = (
    ("student", "base", "own"),
    ("delta for bold words", "single 0", "own"),
    ("delta for lists", "single 1", "own"),
    ("delta for questions", "single 2", "own"),
    ("mean", "mean", "own"),
    ("gam", "gam", "own"),
    ("auto, the default", "auto", "own"),
    ("auto, norm of the deltas", "auto", "norm"),
    ("ties@knots", "ties@knots", "own"),
    ("tsvm", "tsvm", "own"),
    ("sum", "sum", "own"),
    ("trained on one axis after another", "sequential", "own"),
    ("trained on all pairs at once", "joint", "own"),
    ("the same, in the steps of one", "joint, steps of one", "own"),
)
_COLOURS = ("tab:blue", "tab:orange", "tab:green")
_MOST = 1  # of any example


def plot(rows: Iterable[Row], path: Path = PICTURE) -> None:
    """Draw the mean count per answer on every axis, with a dot per seed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "gam-merge"
    from matplotlib import pyplot

    results = Results(rows)
    (study,) = (study for study in STUDIES if study.axes)
    figure, axis = pyplot.subplots(figsize=(7.2, 5.6), layout="constrained")
    axis.axvline(_MOST, color="0.6", linestyle="--", linewidth=1)
    axis.text(_MOST, -0.75, " the most of any example", color="0.4", fontsize=8, va="center")
    for y, (_, method, scale) in enumerate(SUBJECTS):
        size = max(study.sizes) if method in study.methods else 1
        picked = list(results.pick(study, method, scale, size).values())
        for name, colour, shift in zip(AXES, _COLOURS, (-0.25, 0.0, 0.25), strict=True):
            counts = [row["counts"][name] for row in picked]
            title = AXES[name] if y == 0 else None
            bar = fmean(counts) if counts else 0.0
            axis.barh(y + shift, bar, 0.24, color=colour, alpha=0.75, label=title)
            axis.plot(counts, [y + shift] * len(counts), ".", color="0.25", markersize=3)
    axis.set(
        yticks=range(len(SUBJECTS)),
        xlabel="mean count per answer",
        ylim=(len(SUBJECTS) - 0.4, -1.1),
    )
    axis.set_yticklabels([title for title, _, _ in SUBJECTS])
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(AXES), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
