"""The picture of the axes: what each delta and each merge adds to an answer."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.lab.rows import Row
from benchmarks.lab.studies.axes_report import TITLES, gained
from benchmarks.lab.studies.design import STUDIES
from benchmarks.lab.studies.results import Results

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
Figure = Callable[[Row, str], float]  # of a row, on an axis


def plot(rows: Iterable[Row], path: Path = PICTURE) -> None:
    """Draw margins gained and counts per answer on every axis, means with a dot per seed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "gam-merge"
    from matplotlib import pyplot

    results = Results(rows)
    (study,) = (study for study in STUDIES if study.axes)
    base = results.pick(study, "base")
    picked: list[list[Row]] = []
    for _, method, scale in SUBJECTS:
        size = max(study.sizes) if method in study.methods else 1
        picked.append(list(results.pick(study, method, scale, size).values()))
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 5.6), sharey=True, layout="constrained")
    _bars(panels[0], picked, lambda row, name: gained(row, base, name))
    _bars(panels[1], picked, lambda row, name: row["counts"][name])
    panels[0].set(
        xlabel="margin gained on held-out pairs, nats",
        yticks=range(len(SUBJECTS)),
        ylim=(len(SUBJECTS) - 0.4, -1.1),
    )
    panels[0].set_yticklabels([title for title, _, _ in SUBJECTS])
    panels[1].set(xlabel="mean count per answer")
    panels[1].axvline(_MOST, color="0.6", linestyle="--", linewidth=1)
    panels[1].text(_MOST, -0.75, " the most of any example", color="0.4", fontsize=8, va="center")
    lines, titles = panels[0].get_legend_handles_labels()
    figure.legend(lines, titles, loc="outside lower center", ncols=len(TITLES), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _bars(panel: Any, picked: Sequence[Sequence[Row]], figure: Figure) -> None:
    """Draw a bar per subject and axis."""
    for y, rows in enumerate(picked):
        for name, colour, shift in zip(TITLES, _COLOURS, (-0.25, 0.0, 0.25), strict=True):
            values = [figure(row, name) for row in rows]
            title = TITLES[name] if y == 0 else None
            bar = fmean(values) if values else 0.0
            panel.barh(y + shift, bar, 0.24, color=colour, alpha=0.75, label=title)
            panel.plot(values, [y + shift] * len(values), ".", color="0.25", markersize=3)
    panel.spines[["top", "right"]].set_visible(False)
