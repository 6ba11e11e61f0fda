"""The map in docs/gam.md: a table of what was measured, and a picture."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import page
from benchmarks.measure import RESULTS, table
from benchmarks.theory.measure import COUNTS, METHODS, NOISES, Row
from benchmarks.theory.worlds import WORLDS
from gam_merge._methods.auto import KEPT

PAGE = page.PAGE.with_name("gam.md")
PLOT = RESULTS / "theory.svg"
_SHOWN = (1.0, 4)  # size of the noise and number of adapters of the first table
_CLOSE = 0.02  # relative: errors that differ by less count as equal


def read() -> list[Row]:
    """Return the committed rows."""
    rows: list[Row] = json.loads((RESULTS / "theory.json").read_text("utf-8"))["rows"]
    return rows


def tables(rows: Sequence[Row]) -> str:
    """Return the tables of the page."""
    a, count = _SHOWN
    first: list[dict[str, Any]] = []
    for row in rows:
        if (row["a"], row["N"]) == _SHOWN:
            cells = {m: f"{row['own'][m]:.3f} ({row['best'][m]:.3f})" for m in METHODS}
            first.append({f"N = {count}, a = {a:g}": row["world"], **cells})
    distances = (
        "Distance of `anchor=none` from the paper's rule, relative to the latter (median, largest):"
    )
    return "\n\n".join((table(first), _counts(rows), distances, table(_distances(rows))))


def _counts(rows: Sequence[Row]) -> str:
    """Say in how many settings GAM is below the mean, and where it is the best of all."""
    lines: list[str] = []
    for scale, name in (("own", "at its own scale"), ("best", "at the best scale of each")):
        below = [row for row in rows if row[scale]["gam"] < row[scale]["mean"]]
        alone = [row for row in rows if _is_best(row[scale])]
        lines.append(
            f"- {name}: GAM is below the mean in {len(below)} of {len(rows)} settings, and below "
            f"every other rule but its own variants by more than {_CLOSE:.0%} in {len(alone)}."
        )
    apart = [row for row in rows if row["kept"] < KEPT]
    wrong = [row for row in apart if row["own"]["gam"] < row["own"]["consensus(-0.25)"]]
    lines.append(
        f"- `auto` takes consensus(-0.25) in {len(apart)} settings, and GAM has the lower error in "
        f"{len(wrong)} of them: no look at the deltas tells noise from skill."
    )
    return "\n".join(lines)


def _is_best(errors: dict[str, float]) -> bool:
    others = [errors[label] for label in METHODS if not label.startswith("gam")]
    return errors["gam"] < (1 - _CLOSE) * min(others)


def _distances(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the distance between gam with and without an anchor, by |gam| / |mean|."""
    edges = (0.0, 0.5, 0.8, KEPT, 1.01)
    found: list[dict[str, Any]] = []
    for low, high in pairwise(edges):
        cells: dict[str, Any] = {}
        for count in COUNTS:
            apart = [r["apart"] for r in rows if r["N"] == count and low <= r["kept"] < high]
            cells[f"N = {count}"] = f"{median(apart):.2g}, {max(apart):.2g}" if apart else "-"
        name = f"from {low:g}" if high > 1 else f"{low:g} to {high:g}"
        found.append({"gam / mean": name, **cells})
    return found


def write() -> None:
    """Write the tables into the page, and the picture next to the results."""
    page.write("theory", tables(read()), PAGE)
    plot(read(), PLOT)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the error of GAM over that of the mean and of the best consensus, for every world."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "gam-merge"
    from matplotlib import pyplot

    size = (3.2 * len(COUNTS) + 3, 6)
    figure, axes = pyplot.subplots(
        2, len(COUNTS), figsize=size, sharex=True, sharey=True, layout="constrained"
    )
    image = None
    for line, (others, title) in zip(
        axes,
        (
            (("mean",), "gam over mean"),
            (("consensus(0.25)", "consensus(0.5)"), "gam over consensus"),
        ),
        strict=True,
    ):
        for axis, count in zip(line, COUNTS, strict=True):
            values = np.array(
                [[_ratio(rows, world, count, a, others) for a in NOISES] for world in WORLDS]
            )
            image = axis.imshow(values, cmap="RdBu_r", vmin=-3, vmax=3, aspect="auto")
            axis.set_title(f"{title}, N = {count}", fontsize=9)
            axis.set_xticks(range(len(NOISES)), [f"{a:g}" for a in NOISES])
            axis.set_yticks(range(len(WORLDS)), list(WORLDS), fontsize=8)
            for (y, x), value in np.ndenumerate(values):
                axis.text(x, y, f"{2**value:.2f}", ha="center", va="center", fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("a, the size of what is private")
    figure.colorbar(image, ax=axes, label="log2 of the ratio of errors: blue where GAM is better")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _ratio(rows: Sequence[Row], world: str, count: int, a: float, others: Sequence[str]) -> float:
    """Return log2 of the error of GAM over the least of some others, at their own scales."""
    row = next(r for r in rows if (r["world"], r["N"], r["a"]) == (world, count, a))
    return float(np.log2(row["own"]["gam"] / min(row["own"][label] for label in others)))
