"""A method chosen for a set of adapters, without data or by a few questions.

A choice is a method with a scale rule. Without data, by what ``gam-merge compare`` measures: a rule splits the sets by
one figure at one threshold and takes, on either side, the choice with the least NLL over the validation sets. The
figures, the threshold and the choices come from the validation seeds alone, the other seeds judge. By a few questions:
of the points of the (p, q) plane the one with the least NLL on so many validation questions of the set itself, so
that every seed may judge.
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
CANDIDATE: Choice = (
    "consensus(-0.5, 1)",
    "norm",
)  # for all sets, taken from what these showed, which cannot judge it:
SUGGESTED_BY: tuple[tuple[Cell, int], ...] = (
    (("specialists", "shared"), 2),
    (("specialists", "separate"), 2),
    (("same goal", "shared"), 2),
    (("same goal", "separate"), 2),
    (("preferences", "separate"), 0),
)
FIGURES = (
    "overlap U",
    "overlap V",
    "cosine",
)  # overlaps above chance: 0 at chance, 1 for the same spaces
ALL = "all together"


@dataclass(frozen=True)
class AdapterSet:
    """A set of adapters: what is known of it without data, and of every choice the NLL on test questions.

    few: of the points of the plane the NLL on so many validation questions a family.
    """

    cell: Cell
    seed: int
    figures: Mapping[str, float]
    nll: Mapping[Choice, float]
    few: Mapping[Choice, Mapping[str, float]]


Pick = Callable[[AdapterSet], Choice]  # a way to choose


def always(choice: Choice) -> Pick:
    """The same for every set."""
    return lambda one: choice


def by_few(most: int) -> Pick:
    """The point of the plane with the least NLL on ``most`` validation questions a family."""
    return lambda one: min(POINTS, key=lambda point: one.few[point][str(most)])


@dataclass(frozen=True)
class Rule:
    """Sets whose ``figure`` is at most ``most`` are merged by ``low``, others by ``high``."""

    figure: str
    most: float
    low: Choice
    high: Choice

    def __call__(self, one: AdapterSet) -> Choice:
        return self.low if one.figures[self.figure] <= self.most else self.high


def sets(
    rows: Iterable[Row], choices: Sequence[Choice] = CHOICES, size: int = 4
) -> list[AdapterSet]:
    """The sets for which every one of ``choices`` has been measured."""
    figures: dict[tuple[Cell, int], Mapping[str, float]] = {}
    nll: dict[tuple[Cell, int], dict[Choice, float]] = {}
    few: dict[tuple[Cell, int], dict[Choice, Mapping[str, float]]] = {}
    for row in rows:
        where = (row["kind"], row["regime"]), row["seed"]
        if row["size"] != size:
            continue
        if row["method"] == "compare":
            above = [
                (row[f"overlap_{x}"] - row[f"chance_{x}"]) / (1 - row[f"chance_{x}"]) for x in "uv"
            ]
            figures[where] = dict(zip(FIGURES, [*above, row["cosine"]], strict=True))
        elif row["rank"] == "R" and (row["method"], row["scale_rule"]) in choices:
            choice = row["method"], row["scale_rule"]
            nll.setdefault(where, {})[choice] = fmean(row["nll"].values())
            few.setdefault(where, {})[choice] = row.get("few", {})
    whole = [
        where for where, found in nll.items() if where in figures and set(found) == set(choices)
    ]
    return [AdapterSet(*where, figures[where], nll[where], few[where]) for where in sorted(whole)]


def halves(
    rows: Iterable[Row], choices: Sequence[Choice] = CHOICES, validation: Sequence[int] = VALIDATION
) -> tuple[list[AdapterSet], list[AdapterSet]]:
    """The sets of the validation seeds, and the others."""
    found = sets(rows, choices)
    return [x for x in found if x.seed in validation], [
        x for x in found if x.seed not in validation
    ]


def mean_nll(among: Iterable[AdapterSet], pick: Pick) -> float:
    """Over sets, of what is picked for each."""
    return fmean(one.nll[pick(one)] for one in among)


def best(among: Sequence[AdapterSet], choices: Sequence[Choice] = CHOICES) -> Choice:
    """The choice with the least mean NLL."""
    return min(choices, key=lambda choice: mean_nll(among, always(choice)))


def fit(among: Sequence[AdapterSet], figure: str, choices: Sequence[Choice] = CHOICES) -> Rule:
    """The split by a figure in the middle of the widest gap between two sets, with the best choice on either side."""
    values = sorted(one.figures[figure] for one in among)
    _, most = max((b - a, (a + b) / 2) for a, b in pairwise(values))
    sides = ([x for x in among if (x.figures[figure] <= most) is low] for low in (True, False))
    return Rule(figure, most, *(best(side, choices) for side in sides))


def against(test: Sequence[AdapterSet], pick: Pick, other: Pick) -> dict[str, Difference]:
    """One way to choose against another, paired by seed, in every cell: one family of tests. And over all sets."""
    pairs: dict[str, tuple[list[float], list[float]]] = {}
    for one in test:
        for side, how in zip(
            pairs.setdefault(", ".join(one.cell), ([], [])), (pick, other), strict=True
        ):
            side.append(one.nll[how(one)])
    return {**paired(pairs), **paired({ALL: _by_seed(test, pick, other)})}


def _by_seed(test: Sequence[AdapterSet], *picks: Pick) -> tuple[list[float], ...]:
    """Of each way to choose the mean over the sets of every seed, which have their questions in common."""
    seeds = sorted({one.seed for one in test})
    return tuple(
        [fmean(one.nll[how(one)] for one in test if one.seed == s) for s in seeds] for how in picks
    )
