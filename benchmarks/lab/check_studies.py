"""A second reading of what the verdict says on the studies, from their rows, by other code."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from scipy.stats import ttest_rel

Row = Mapping[str, Any]
Figures = tuple[float, ...]  # in the order of the text; True and False are conditions without one

AXES = ("bold", "bullets", "opening")  # in the order of the single deltas
MOST = 1  # of any example


class Axes:
    """The rows of the study of the axes: by seed, and there by method, scale and adapters."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows: dict[int, dict[tuple[str, str, int], Row]] = {}
        for row in rows:
            if row["study"] == "axes":
                of_seed = self.rows.setdefault(row["seed"], {})
                of_seed[row["method"], row["scale"], row["size"]] = row

    def counts(self, axis: str, method: str) -> float:
        """Return the mean count per answer of an adapter."""
        return fmean(rows[method, "own", 1]["counts"][axis] for rows in self.rows.values())

    def gained(self, axis: str, method: str, size: int) -> list[float]:
        """Return the margin on an axis less that of the student, by seed."""
        gains: list[float] = []
        for rows in self.rows.values():
            base, own = rows["base", "own", 1], rows[method, "own", size]
            gains.append(own["margin"][axis] - base["margin"][axis])
        return gains

    def price(self, method: str) -> float:
        """Return the mean over seeds of the NLL of plain text, less that of the student."""
        prices: list[float] = []
        for rows in self.rows.values():
            base, own = rows["base", "own", 1], rows[method, "own", 3]
            prices.append(own["nll"]["prose"] - base["nll"]["prose"])
        return fmean(prices)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p after Holm's correction, in the order of size."""
    ordered, corrected = sorted(ps), [0.0]
    for i, p in enumerate(ordered):
        corrected.append(max(corrected[-1], min(1.0, (len(ordered) - i) * p)))
    return corrected[1:]


def a_merge_has_all_axes(rows: Iterable[Row]) -> Figures:
    axes = Axes(rows)
    beyond = all(axes.counts(axis, f"single {i}") > MOST for i, axis in enumerate(AXES))
    gains: dict[str, list[list[float]]] = {}
    figures: list[float] = []
    for method in ("tsvm", "mean", "gam"):
        gains[method] = [axes.gained(axis, method, 3) for axis in AXES]
        shares: list[float] = []
        for i, axis in enumerate(AXES):
            alone = fmean(axes.gained(axis, f"single {i}", 1))
            shares.append(100 * fmean(gains[method][i]) / alone)
        figures += [min(shares), max(shares)]
    ps: list[float] = []
    falling = True
    for more, less in (("tsvm", "mean"), ("mean", "gam")):
        for x, y in zip(gains[more], gains[less], strict=True):
            ps.append(float(ttest_rel(x, y).pvalue))
            falling = falling and fmean(x) > fmean(y)
    sure = falling and max(holm(ps)) < 0.05
    return (len(axes.rows) == 5, beyond, *figures, sure, axes.price("tsvm"))


CLAIMS: tuple[tuple[Callable[[Iterable[Row]], Figures], str], ...] = (
    (
        a_merge_has_all_axes,
        "`tsvm` gains {} to {} % of the margin that each delta gains on its own axis, the mean {} "
        "to {} % and GAM {} to {} %, every difference with p < 0.05 after Holm's correction. The "
        "price is {} nats on plain text",
    ),
)
