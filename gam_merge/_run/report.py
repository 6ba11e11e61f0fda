"""What a merge did: norms, the share of each adapter that survives, what was cut off, what was doubtful."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any


@dataclass(frozen=True)
class ModuleReport:
    """One module of the merge. Tuples run over the adapters of the merge; norms are Frobenius norms of deltas."""

    name: str
    shape: tuple[int, int]  # (out, in), of each matrix if it is a stack
    ranks: tuple[int, ...]  # numerical rank of each delta, 0 where the adapter lacks the module
    norms: tuple[float, ...]  # |delta_i|
    inners: tuple[float, ...]  # <merged, delta_i>
    responses: tuple[float, ...]  # |U_i^T merged V_i|^2, what the result does where adapter i acts
    mean_norm: float  # weighted mean of |delta_i|
    merged_rank: int  # columns of the result that are not padding
    merged_norm: float
    energy_kept: float  # |cut|^2 / |uncut|^2 of the cut to the output rank, 1 if nothing was cut
    warnings: tuple[str, ...] = ()
    fell_back: bool = False  # float32 did not serve: products of full size were formed in float64

    @property
    def norm_ratio(self) -> float:
        """|merged| / weighted mean of |delta_i|: 1 if the adapters agree."""
        return self.merged_norm / self.mean_norm if self.mean_norm else 0.0

    @property
    def survival(self) -> tuple[float, ...]:
        """<merged, delta_i> / |delta_i|^2: how much of each adapter is in the result, 1 for all."""
        return tuple(
            x / n**2 if n**2 else 0.0 for x, n in zip(self.inners, self.norms, strict=True)
        )

    @property
    def own(self) -> tuple[float, ...]:
        """Of each response what is along the delta itself: <merged, delta_i>^2 / |delta_i|^2."""
        return tuple(
            (x / n) ** 2 if n else 0.0 for x, n in zip(self.inners, self.norms, strict=True)
        )

    @property
    def cross_talk(self) -> tuple[float, ...]:
        """Of what the result does where adapter i acts, the share not along delta_i: 0 if nothing disturbs it."""
        return tuple(_cross_talk(x, y) for x, y in zip(self.own, self.responses, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        figures = ("norm_ratio", "survival", "cross_talk")
        return {**vars(self), **{name: getattr(self, name) for name in figures}}


def _cross_talk(own: float, response: float) -> float:
    return max(0.0, 1 - own / response) if response else 0.0


def combined(parts: Sequence[ModuleReport]) -> ModuleReport:
    """The report of a module that is a stack of matrices, from those of the matrices."""
    if len(parts) == 1:
        return parts[0]
    merged = sqrt(sum(part.merged_norm**2 for part in parts))
    uncut = sum(part.merged_norm**2 / part.energy_kept for part in parts if part.energy_kept)
    columns = zip(*(part.ranks for part in parts), strict=True)
    return ModuleReport(
        name=parts[0].name,
        shape=parts[0].shape,
        ranks=tuple(max(column) for column in columns),
        norms=tuple(
            sqrt(sum(x**2 for x in column))
            for column in zip(*(part.norms for part in parts), strict=True)
        ),
        inners=tuple(map(sum, zip(*(part.inners for part in parts), strict=True))),
        responses=tuple(map(sum, zip(*(part.responses for part in parts), strict=True))),
        mean_norm=sqrt(sum(part.mean_norm**2 for part in parts)),
        merged_rank=max(part.merged_rank for part in parts),
        merged_norm=merged,
        energy_kept=merged**2 / uncut if uncut else 1.0,
        warnings=tuple(dict.fromkeys(text for part in parts for text in part.warnings)),
        fell_back=any(part.fell_back for part in parts),
    )


@dataclass(frozen=True)
class MergeReport:
    """The whole merge. ``extras`` counts the merged tensors of each kind that are no factors; ``notes`` says in words
    what the user should know and no number tells."""

    method: str
    sources: tuple[str, ...]
    weights: tuple[float, ...]
    anchor: int
    rank: int
    dtype: str
    modules: tuple[ModuleReport, ...]
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])  # of the method
    extras: Mapping[str, int] = field(default_factory=dict[str, int])
    notes: tuple[str, ...] = ()

    @property
    def norms(self) -> tuple[float, ...]:
        """|delta_i| over all modules."""
        return tuple(
            sqrt(sum(m.norms[i] ** 2 for m in self.modules)) for i in range(len(self.sources))
        )

    @property
    def merged_norm(self) -> float:
        """|merged| over all modules."""
        return sqrt(sum(m.merged_norm**2 for m in self.modules))

    @property
    def norm_ratio(self) -> float:
        """|merged| / weighted mean of |delta_i|: 1 if the adapters agree."""
        weights = [abs(w) for w in self.weights]
        mean = sum(w * n for w, n in zip(weights, self.norms, strict=True)) / sum(weights)
        return self.merged_norm / mean if mean else 0.0

    @property
    def survival(self) -> tuple[float, ...]:
        """<merged, delta_i> / |delta_i|^2 over all modules: how much of each adapter is in the result, 1 for all."""
        inners = (sum(m.inners[i] for m in self.modules) for i in range(len(self.sources)))
        return tuple(x / n**2 if n**2 else 0.0 for x, n in zip(inners, self.norms, strict=True))

    @property
    def cross_talk(self) -> tuple[float, ...]:
        """Of what the result does where adapter i acts, the share that is not along delta_i, over all modules."""
        everyone = range(len(self.sources))
        own = (sum(m.own[i] for m in self.modules) for i in everyone)
        responses = (sum(m.responses[i] for m in self.modules) for i in everyone)
        return tuple(map(_cross_talk, own, responses))

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Modules whose factors are too ill-conditioned for float32: products of full size were formed in float64."""
        return tuple(m.name for m in self.modules if m.fell_back)

    def worst(self, count: int = 10) -> tuple[ModuleReport, ...]:
        """The modules in which the least of the adapters survives, worst first."""
        present = [module for module in self.modules if any(module.norms)]
        return tuple(sorted(present, key=_least_survival)[:count])

    @property
    def energy_kept(self) -> float:
        """Share of the squared norm that the cut to the output rank kept."""
        before = sum(m.merged_norm**2 / m.energy_kept for m in self.modules if m.energy_kept)
        return self.merged_norm**2 / before if before else 1.0

    @property
    def warnings(self) -> dict[str, tuple[str, ...]]:
        """Each warning and the modules that it is about."""
        found: dict[str, list[str]] = {}
        for module in self.modules:
            for text in module.warnings:
                found.setdefault(text, []).append(module.name)
        return {text: tuple(names) for text, names in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the totals first, then every module."""
        fields = {name: value for name, value in vars(self).items() if name != "modules"}
        figures = {name: getattr(self, name) for name in _TOTALS}
        return {**fields, **figures, "modules": [module.to_dict() for module in self.modules]}


_TOTALS = (
    "norms",
    "merged_norm",
    "norm_ratio",
    "survival",
    "cross_talk",
    "energy_kept",
    "fallbacks",
    "warnings",
)


def _least_survival(module: ModuleReport) -> float:
    """Survival summed over energy: <merged, sum of deltas> / sum of |delta_i|^2."""
    return sum(module.inners) / sum(n**2 for n in module.norms)


def erasure_notes(report: MergeReport) -> list[str]:
    """Return a note where a method that should average lost most of what averaging keeps.

    The mean keeps its weight of an adapter that shares nothing with the others.
    """
    if len(report.sources) < 2:
        return []
    for share, weight in zip(report.survival, report.weights, strict=True):
        if share >= weight / 2:
            return []
    return [
        f"{report.method} keeps at most {max(report.survival):.0%} of each adapter: they share few "
        "directions, and what one has alone is filtered out; mean keeps its weight (gam-merge "
        "compare says more)"
    ]
