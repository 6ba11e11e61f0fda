"""Several adapters next to each other: the result of ``compare``.

Tensor legend: ``N`` adapters, ``M`` modules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Any, ClassVar

import numpy as np

from gam_merge._common.names import clipped, shortened
from gam_merge._diagnose.measures import Array, Measures
from gam_merge._diagnose.pairwise import Pair
from gam_merge._diagnose.panels import CosineMatrix, Curves, Panel, Sheet, angles, spectra
from gam_merge._diagnose.result import Result
from gam_merge._diagnose.verdict import Recommendation, verdict


@dataclass(frozen=True)
class ModuleComparison:
    """The part of a comparison that does not add up over modules, for one module.

    Example:
        >>> comparison = gm.compare(["examples/adapters/addition", "examples/adapters/sorting"])
        >>> module = comparison.modules[0]
        >>> module.name, module.shape, module.ranks
        ('model.layers.0.mlp.down_proj', (576, 1536), (8, 8))
        >>> len(module.cosines_u[0, 1])  # principal angles between the column spaces of 0 and 1
        8
    """

    name: str
    shape: tuple[int, int]  # (out, in)
    ranks: tuple[int, ...]  # numerical rank of each delta, 0 where an adapter lacks the module
    spectra: tuple[tuple[float, ...], ...]  # singular values of each delta
    cosines_u: Mapping[Pair, tuple[float, ...]]  # between column spaces, descending
    cosines_v: Mapping[Pair, tuple[float, ...]]  # between row spaces
    notes: tuple[str, ...] = ()  # what makes the alignment of gam doubtful

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON.

        The principal angles of all pairs are summarised, in degrees, as their least, quartiles and
        largest.
        """
        return {
            "name": self.name,
            "shape": list(self.shape),
            "ranks": list(self.ranks),
            "angles_u": _quartiles(self.cosines_u),
            "angles_v": _quartiles(self.cosines_v),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, eq=False)
class Comparison(Result[Measures]):
    """Several adapters next to each other.

    ``measures`` (M, N, N) holds one entry per module, in the order of ``modules``; ``total`` and
    ``by`` sum them up.

    Example:
        >>> comparison = gm.compare(["examples/adapters/addition", "examples/adapters/sorting"])
        >>> round(float(comparison.total.times_chance_u), 1)  # 1 is the level of unrelated adapters
        2.1
        >>> types = comparison.by("type")
        >>> max(types, key=lambda name: types[name].times_chance_u)
        'self_attn.q_proj'
        >>> comparison.recommendation.method
        'consensus'
    """

    sources: tuple[str, ...]
    weights: tuple[float, ...]
    anchor: int
    base_model: str | None
    modules: tuple[ModuleComparison, ...]
    measures: Measures
    recommendation: Recommendation
    merge_notes: tuple[str, ...] = ()  # what a merge would say beforehand, or why it would not run

    _template: ClassVar[str] = "comparison.html"

    def _part(self, members: Sequence[int]) -> Measures:
        return self.measures[members].sum()

    @property
    def notes(self) -> dict[str, tuple[str, ...]]:
        """Doubts about the alignment of ``gam``, with the modules concerned."""
        modules: dict[str, list[str]] = {}
        for module in self.modules:
            for text in module.notes:
                modules.setdefault(text, []).append(module.name)
        return {text: tuple(names) for text, names in modules.items()}

    @property
    def verdict(self) -> str:
        """The figures in plain words."""
        return verdict(self.total)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: all modules together, then by layer, by type, one by one."""
        modules = []
        for j, module in enumerate(self.modules):
            measures = self.measures[j]
            figures = {"norms": _plain(measures.norms), **_plain_all(measures.scalars())}
            modules.append({**module.to_dict(), **figures})
        return {
            "sources": list(self.sources),
            "weights": list(self.weights),
            "anchor": self.anchor,
            "base_model": self.base_model,
            "shared": self.shared,
            "merge_notes": list(self.merge_notes),
            "verdict": self.verdict,
            "recommendation": self.recommendation.to_dict(),
            **_plain_all(self.total.scalars()),
            "norms": _plain(self.total.norms),
            **_plain_all(self.total.matrices()),
            "notes": self.notes,
            "layers": _scalars(self.by("layer")),
            "types": _scalars(self.by("type")),
            "modules": modules,
        }

    def _sheet(self) -> Sheet:
        panels: dict[str, Panel] = {
            "u": self._heatmap("overlap of column spaces / chance level", "times_chance_u"),
            "v": self._heatmap("overlap of row spaces / chance level", "times_chance_v"),
            "spectra": self._spectra(),
            "angles": self._angles(),
            "gram": self._cosines(),
        }
        return Sheet(panels, [["u"] * 3, ["v"] * 3, ["spectra", "angles", "gram"]])

    def _spectra(self) -> Curves:
        of_adapters = {}
        for i, label in enumerate(self._labels()):
            of_adapters[label] = [module.spectra[i] for module in self.modules]
        return spectra(of_adapters)

    def _angles(self) -> Curves:
        columns: list[Sequence[float]] = []
        rows: list[Sequence[float]] = []
        for module in self.modules:
            columns += module.cosines_u.values()
            rows += module.cosines_v.values()
        chance_u, chance_v = float(self.total.chance_u), float(self.total.chance_v)
        return angles(
            {"column spaces": columns, "row spaces": rows},
            {"column spaces": chance_u, "row spaces": chance_v},
        )

    def _cosines(self) -> CosineMatrix:
        labelled = zip(self._labels(), self.total.norms, strict=True)
        labels = [f"{label}\nnorm {norm:.3g}" for label, norm in labelled]
        return CosineMatrix("cosines between the deltas", labels, self.total.cosines)

    def _labels(self) -> list[str]:
        """Return the position and the end of the path of each adapter."""
        names = shortened(self.sources, "/")
        return [clipped(names[source], f"{i} ") for i, source in enumerate(self.sources)]

    def _values(self) -> dict[str, Any]:
        positions = range(len(self.sources))
        held = [self._held(i) for i in positions]
        pairs = [(pair, self.total.pair(*pair)) for pair in combinations(positions, 2)]
        return {"result": self, "held": held, "pairs": pairs}

    @property
    def shared(self) -> int:
        """How many modules all adapters change."""
        return sum(all(module.ranks) for module in self.modules)

    def _held(self, i: int) -> int:
        """Count the modules that adapter ``i`` changes."""
        return sum(module.ranks[i] > 0 for module in self.modules)


def _scalars(parts: Mapping[str, Measures]) -> dict[str, dict[str, Any]]:
    return {label: _plain_all(part.scalars()) for label, part in parts.items()}


def _plain_all(figures: Mapping[str, Array]) -> dict[str, Any]:
    return {name: _plain(values) for name, values in figures.items()}


def _plain(values: Array) -> Any:
    """Return nested lists and floats, None for NaN, which JSON does not have."""
    return _without_nan(np.asarray(values).tolist())


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return value if isfinite(value) else None


def _quartiles(cosines: Mapping[Pair, tuple[float, ...]]) -> list[float] | None:
    if not cosines:
        return None
    degrees = np.degrees(np.arccos(np.concatenate(list(cosines.values()))))
    return np.quantile(degrees, [0, 0.25, 0.5, 0.75, 1]).tolist()
