"""A method chosen for a set of adapters, without data or by a few questions.

A choice is a method with a scale rule. Without data, it follows what ``gam-merge compare``
measures: a rule splits the sets by one figure at one threshold, and takes on either side the choice
with the least NLL over the validation sets. Figure, threshold and choices come from the validation
seeds alone, and the other seeds judge. By a few questions, it is the point of the (p, q) plane with
the least NLL on some validation questions of the set itself, so every seed may judge.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from benchmarks.lab.design import METHODS, PLANE, PLANE_AT_OWN
from benchmarks.lab.rows import Row
from benchmarks.lab.statistics import Difference, paired

VALIDATION = (0, 1)  # seeds that choose among whole methods
VALIDATION_PLANE = (0, 1, 2)  # and among points of the plane: settled when few sets had them
CHOICES = tuple((label, scale) for label in METHODS for scale in ("own", "norm"))
POINTS = (*((label, "norm") for label in PLANE), *((label, "own") for label in PLANE_AT_OWN))
Choice = tuple[str, str]  # label, scale rule
Cell = tuple[str, str]  # kind, regime
# one choice for all sets, suggested by some of them, which therefore cannot judge it
CANDIDATE: Choice = ("consensus(-0.5, 1)", "norm")
SUGGESTED_BY: tuple[tuple[Cell, int], ...] = (
    (("specialists", "shared"), 2),
    (("specialists", "separate"), 2),
    (("same goal", "shared"), 2),
    (("same goal", "separate"), 2),
    (("preferences", "separate"), 0),
)
# overlaps above chance: 0 at chance, 1 for equal spaces
FIGURES = ("overlap U", "overlap V", "cosine")
ALL = "all together"


@dataclass(frozen=True)
class AdapterSet:
    """A set of adapters, and what was measured of it.

    Attributes:
        cell: kind and regime.
        seed: of its data and initial factors.
        figures: what is known without data.
        nll: on test questions, by choice.
        few: on a number of validation questions per family, by point of the plane and number.
    """

    cell: Cell
    seed: int
    figures: Mapping[str, float]
    nll: Mapping[Choice, float]
    few: Mapping[Choice, Mapping[str, float]]


Pick = Callable[[AdapterSet], Choice]  # a way to choose


def always(choice: Choice) -> Pick:
    """Return a way that picks the same choice for every set."""
    return lambda adapter_set: choice


def by_few(most: int) -> Pick:
    """Return a way that picks the best point on ``most`` validation questions per family."""

    def pick(adapter_set: AdapterSet) -> Choice:
        return min(POINTS, key=lambda point: adapter_set.few[point][str(most)])

    return pick


@dataclass(frozen=True)
class Rule:
    """Picks ``low`` for sets whose ``figure`` is at most ``most``, and ``high`` for others."""

    figure: str
    most: float
    low: Choice
    high: Choice

    def __call__(self, adapter_set: AdapterSet) -> Choice:
        return self.low if adapter_set.figures[self.figure] <= self.most else self.high


def sets(
    rows: Iterable[Row], choices: Sequence[Choice] = CHOICES, size: int = 4
) -> list[AdapterSet]:
    """Return the sets for which every one of ``choices`` has been measured."""
    figures: dict[tuple[Cell, int], Mapping[str, float]] = {}
    nll: dict[tuple[Cell, int], dict[Choice, float]] = {}
    few: dict[tuple[Cell, int], dict[Choice, Mapping[str, float]]] = {}
    for row in rows:
        where = (row["kind"], row["regime"]), row["seed"]
        if row["size"] != size:
            continue
        if row["method"] == "compare":
            values = (_above_chance(row, "u"), _above_chance(row, "v"), row["cosine"])
            figures[where] = dict(zip(FIGURES, values, strict=True))
        elif row["rank"] == "R" and (row["method"], row["scale_rule"]) in choices:
            choice = row["method"], row["scale_rule"]
            nll.setdefault(where, {})[choice] = fmean(row["nll"].values())
            few.setdefault(where, {})[choice] = row.get("few", {})
    complete: list[AdapterSet] = []
    for where in sorted(figures):
        if set(nll.get(where, ())) == set(choices):
            complete.append(AdapterSet(*where, figures[where], nll[where], few[where]))
    return complete


def _above_chance(row: Row, side: str) -> float:
    """Return the overlap of the column (u) or row (v) spaces above chance."""
    chance = row[f"chance_{side}"]
    return (row[f"overlap_{side}"] - chance) / (1 - chance)


def halves(
    rows: Iterable[Row], choices: Sequence[Choice] = CHOICES, validation: Sequence[int] = VALIDATION
) -> tuple[list[AdapterSet], list[AdapterSet]]:
    """Return the sets of the validation seeds, and the others."""
    known: list[AdapterSet] = []
    test: list[AdapterSet] = []
    for adapter_set in sets(rows, choices):
        half = known if adapter_set.seed in validation else test
        half.append(adapter_set)
    return known, test


def mean_nll(among: Iterable[AdapterSet], pick: Pick) -> float:
    """Return the mean over sets of the NLL of what is picked for each."""
    return fmean(adapter_set.nll[pick(adapter_set)] for adapter_set in among)


def best(among: Sequence[AdapterSet], choices: Sequence[Choice] = CHOICES) -> Choice:
    """Return the choice with the least mean NLL."""
    return min(choices, key=lambda choice: mean_nll(among, always(choice)))


def fit(among: Sequence[AdapterSet], figure: str, choices: Sequence[Choice] = CHOICES) -> Rule:
    """Return the split by a figure in the widest gap between sets, with the best on either side."""
    values = sorted(adapter_set.figures[figure] for adapter_set in among)
    _, most = max((b - a, (a + b) / 2) for a, b in pairwise(values))
    low = [adapter_set for adapter_set in among if adapter_set.figures[figure] <= most]
    high = [adapter_set for adapter_set in among if adapter_set.figures[figure] > most]
    return Rule(figure, most, best(low, choices), best(high, choices))


def against(test: Sequence[AdapterSet], pick: Pick, other: Pick) -> dict[str, Difference]:
    """Return one way to choose against another, paired by seed, in every cell and over all sets.

    The cells are one family of tests.
    """
    pairs: dict[str, tuple[list[float], list[float]]] = {}
    for adapter_set in test:
        picked, others = pairs.setdefault(", ".join(adapter_set.cell), ([], []))
        picked.append(adapter_set.nll[pick(adapter_set)])
        others.append(adapter_set.nll[other(adapter_set)])
    overall = paired({ALL: (_by_seed(test, pick), _by_seed(test, other))})
    return {**paired(pairs), **overall}


def _by_seed(test: Sequence[AdapterSet], pick: Pick) -> list[float]:
    """Return the mean over the sets of each seed, which share their questions."""
    means: list[float] = []
    for seed in sorted({adapter_set.seed for adapter_set in test}):
        means.append(mean_nll([x for x in test if x.seed == seed], pick))
    return means
