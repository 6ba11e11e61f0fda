"""The panels of a sheet as plain data: results describe them.

``figures`` draws them for paper, ``picture`` for pages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gam_merge._common.names import Grid, clipped, shortened
from gam_merge._diagnose.measures import Array

SCREEN = 64, 256  # rows and columns of a heat map that a screen shows
MOST_CURVES = 16  # more cannot be told apart, nor named in a legend
NUMBERED = 10  # adapters up to which the cells of a matrix show their numbers

Tick = tuple[int, str]  # the position of a row or column, and its label


@dataclass(frozen=True)
class Heatmap:
    """A number per layer and type of module, as colour."""

    title: str
    grid: Grid

    @property
    def x(self) -> str:
        """What the columns are."""
        return _axis("layer", self.grid.pooled[1])

    @property
    def y(self) -> str:
        """What the rows are, where it has to be said."""
        return _axis("type", self.grid.pooled[0]) if self.grid.pooled[0] > 1 else ""

    def columns(self, most: int) -> list[Tick]:
        """Return at most so many layers at equal distances, with their labels."""
        return _ticks(self.grid.layers, most)

    def rows(self, most: int) -> list[Tick]:
        """Return at most so many types at equal distances, with their labels."""
        return _ticks(self.grid.types, most)


def _axis(noun: str, pooled: int) -> str:
    return noun if pooled == 1 else f"{noun} (the mean of {pooled} neighbours each)"


def _ticks(names: Sequence[str], most: int) -> list[Tick]:
    step = -(-len(names) // most)
    labels = [clipped(label) for label in shortened(names).values()]
    return list(enumerate(labels))[::step]


@dataclass(frozen=True)
class Curve:
    """A line through points, and the place of a thin vertical line in its colour."""

    label: str
    x: Array
    y: Array
    mark: float | None = None


@dataclass(frozen=True)
class Curves:
    """Several curves on the same axes; without ``limits`` x counts something."""

    title: str
    x: str
    y: str
    curves: Sequence[Curve]
    limits: tuple[float, float] | None = None
    log: bool = False


@dataclass(frozen=True)
class CosineMatrix:
    """The cosines (N, N) between deltas, NaN where one is zero."""

    title: str
    labels: Sequence[str]
    cosines: Array


Panel = Heatmap | Curves | CosineMatrix


@dataclass(frozen=True)
class Sheet:
    """Panels by name, and their places on a page: rows of names, repeated for wide panels."""

    panels: Mapping[str, Panel]
    rows: Sequence[Sequence[str]]


def spectra(modules: Mapping[str, Sequence[Sequence[float]]]) -> Curves:
    """Show the mean spectrum of each label over its modules, whose spectra are given."""
    curves = []
    for label, spectra_of_label in modules.items():
        nonzero = [np.asarray(values) for values in spectra_of_label if len(values)]
        if nonzero:
            mean = _mean_spectrum(nonzero)
            curves.append(Curve(label, np.arange(1.0, len(mean) + 1), mean))
    return Curves(
        "spectra of the deltas, scaled to norm 1",
        "index of the singular value",
        "mean singular value",
        curves,
        log=True,
    )


def _mean_spectrum(spectra: Sequence[Array]) -> Array:
    """Average spectra of norm one, padded with zeros to the longest."""
    width = max(map(len, spectra))
    rows = [np.pad(s, (0, width - len(s))) / np.linalg.norm(s) for s in spectra]
    return np.mean(rows, 0)


def angles(
    cosines: Mapping[str, Sequence[Sequence[float]]], chances: Mapping[str, float]
) -> Curves:
    """Show the distribution of principal angles per label, and the angle of its chance level.

    cosines: of the angles. chances: mean squared cosines of random subspaces.
    """
    shares = np.linspace(0, 1, 201)
    curves = []
    for label, cosines_of_label in cosines.items():
        if cosines_of_label:
            degrees = np.degrees(np.arccos(np.concatenate(cosines_of_label)))
            chance = float(np.degrees(np.arccos(np.sqrt(chances[label]))))
            curves.append(Curve(label, np.quantile(degrees, shares), shares, chance))
    return Curves(
        "principal angles",
        "degrees (thin line: chance level)",
        "cumulative share of angles",
        curves,
        limits=(0, 90),
    )
