"""Several adapters side by side: what ``compare`` found.

Tensor legend: ``N`` adapters, ``M`` modules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from gam_merge._common.names import By, Grid, grid, group
from gam_merge._diagnose.documents import save_html, save_plot
from gam_merge._diagnose.measures import Array, Measures
from gam_merge._diagnose.pairwise import Pair
from gam_merge._diagnose.verdict import Recommendation, recommend, verdict

_SCALARS = (
    "overlap_u",
    "chance_u",
    "times_chance_u",
    "overlap_v",
    "chance_v",
    "times_chance_v",
    "cosine",
    "common_energy",
    "chance_common",
    "sign_agreement",
    "mean_norm",
    "gam_norm",
    "gam_to_mean",
)
_MATRICES = (
    "gram",
    "cosines",
    "overlaps_u",
    "chances_u",
    "overlaps_v",
    "chances_v",
    "commons",
    "sign_agreements",
)


@dataclass(frozen=True)
class ModuleComparison:
    """One module of a comparison: what does not add up over modules."""

    name: str
    shape: tuple[int, int]  # (out, in)
    ranks: tuple[int, ...]  # numerical rank of each delta, 0 where the adapter has none here
    spectra: tuple[tuple[float, ...], ...]  # singular values of each delta
    cosines_u: Mapping[
        Pair, tuple[float, ...]
    ]  # of the principal angles between column spaces, descending
    cosines_v: Mapping[Pair, tuple[float, ...]]  # between row spaces
    notes: tuple[str, ...] = ()  # what was doubtful about the alignment of gam

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. Of the principal angles of all pairs: least, quartiles and largest, in degrees."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "ranks": list(self.ranks),
            "angles_u": _quartiles(self.cosines_u),
            "angles_v": _quartiles(self.cosines_v),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several adapters side by side. ``measures`` (M, N, N) holds one entry a module, in the order of ``modules``."""

    sources: tuple[str, ...]
    weights: tuple[float, ...]
    anchor: int
    base_model: str | None
    modules: tuple[ModuleComparison, ...]
    measures: Measures

    @cached_property
    def total(self) -> Measures:
        """Over all modules: (N, N)."""
        return self.measures.sum()

    def by(self, part: By) -> dict[str, Measures]:
        """By layer, type or module, in natural order."""
        groups = group([module.name for module in self.modules], part)
        return {label: self.measures[members].sum() for label, members in groups.items()}

    def grid(self, figure: str) -> Grid:
        """One of the figures of ``Measures`` that is a number, such as "overlap_u", by layer and type."""
        names = [module.name for module in self.modules]
        return grid(names, lambda members: float(getattr(self.measures[members].sum(), figure)))

    @property
    def notes(self) -> dict[str, tuple[str, ...]]:
        """What was doubtful about the alignment of ``gam``, and the modules that it is about."""
        found: dict[str, list[str]] = {}
        for module in self.modules:
            for text in module.notes:
                found.setdefault(text, []).append(module.name)
        return {text: tuple(names) for text, names in found.items()}

    @property
    def verdict(self) -> str:
        """What the figures say, in plain words."""
        return verdict(self.total)

    @property
    def recommendation(self) -> Recommendation:
        """A method for these adapters, and why."""
        return recommend(self.total)

    def save_plot(self, path: str | PathLike[str]) -> Path:
        """Write all figures on one sheet: .png, .svg or .pdf. Needs matplotlib. Raises GamMergeError."""
        return save_plot(self, path)

    def save_html(self, path: str | PathLike[str]) -> Path:
        """Write a report of one HTML file that needs nothing else. Needs matplotlib, jinja2. Raises GamMergeError."""
        return save_html(self, path)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: all modules together, then by layer, by type and one by one."""
        return {
            "sources": list(self.sources),
            "weights": list(self.weights),
            "anchor": self.anchor,
            "base_model": self.base_model,
            "verdict": self.verdict,
            "recommendation": self.recommendation.to_dict(),
            **_scalars(self.total),
            "norms": _plain(self.total.norms),
            **{name: _plain(getattr(self.total, name)) for name in _MATRICES},
            "notes": self.notes,
            "layers": {name: _scalars(part) for name, part in self.by("layer").items()},
            "types": {name: _scalars(part) for name, part in self.by("type").items()},
            "modules": [
                {
                    **module.to_dict(),
                    "norms": _plain(self.measures[j].norms),
                    **_scalars(self.measures[j]),
                }
                for j, module in enumerate(self.modules)
            ],
        }


def _scalars(measures: Measures) -> dict[str, Any]:
    return {name: _plain(getattr(measures, name)) for name in _SCALARS}


def _plain(values: Array) -> Any:
    """Nested lists and floats, None for what is not defined: JSON has no NaN."""

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(entry) for entry in value]
        return value if isfinite(value) else None

    return clean(np.asarray(values).tolist())


def _quartiles(cosines: Mapping[Pair, tuple[float, ...]]) -> list[float] | None:
    if not cosines:
        return None
    angles = np.degrees(
        np.arccos(np.concatenate([np.asarray(values) for values in cosines.values()]))
    )
    return np.quantile(angles, [0, 0.25, 0.5, 0.75, 1]).tolist()
