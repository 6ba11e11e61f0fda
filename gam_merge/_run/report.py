"""The report of a merge: norms, survival of each adapter, energy that was cut off, warnings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import hypot
from typing import Any

from gam_merge._methods._rule import Choice


@dataclass(frozen=True)
class ModuleReport:
    """One module of a merge. Tuples run over the adapters; norms are Frobenius norms of deltas.

    Attributes:
        name: the name of the module.
        shape: (out, in), of each matrix if the module is a stack.
        ranks: the numerical rank of each delta, 0 where the adapter lacks the module.
        norms: |delta_i|.
        inners: <merged, delta_i>.
        responses: |U_i^T merged V_i|^2, the result where adapter i acts.
        mean_norm: the weighted mean of |delta_i|.
        merged_rank: columns of the result that are not padding.
        merged_norm: |merged|.
        energy_kept: |cut|^2 / |uncut|^2 of the cut to the output rank, times the same of what was
            cut when the adapters were read; 1 if nothing was cut.
        warnings: doubts about the result, in words.
        fell_back: float32 was not exact enough; products of full size were formed in float64.

    Example:
        >>> result = gm.merge(["examples/adapters/addition", "examples/adapters/sorting"])
        >>> module = result.report.modules[0]
        >>> module.name, module.shape, module.ranks
        ('model.layers.0.mlp.down_proj', (576, 1536), (8, 8))
    """

    name: str
    shape: tuple[int, int]
    ranks: tuple[int, ...]
    norms: tuple[float, ...]
    inners: tuple[float, ...]
    responses: tuple[float, ...]
    mean_norm: float
    merged_rank: int
    merged_norm: float
    energy_kept: float
    warnings: tuple[str, ...] = ()
    fell_back: bool = False

    @property
    def norm_ratio(self) -> float:
        """|merged| / weighted mean of |delta_i|: 1 if the adapters agree."""
        return self.merged_norm / self.mean_norm if self.mean_norm else 0.0

    @property
    def survival(self) -> tuple[float, ...]:
        """<merged, delta_i> / |delta_i|^2: the share of each adapter in the result, 1 for all."""
        return tuple(map(_survival, self.inners, self.norms))

    @property
    def own(self) -> tuple[float, ...]:
        """<merged, delta_i>^2 / |delta_i|^2: the part of each response along the delta itself."""
        return tuple(map(_own, self.inners, self.norms))

    @property
    def cross_talk(self) -> tuple[float, ...]:
        """The share of the result where adapter i acts that is not along delta_i.

        0 if nothing disturbs it.
        """
        return tuple(map(_cross_talk, self.own, self.responses))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, figures to six significant digits.

        So the report of twenty thousand modules, as adapters of experts have, stays below 10 MB.
        """
        shares = ("norm_ratio", "survival", "cross_talk")
        figures = {**vars(self), **{name: getattr(self, name) for name in shares}}
        return {name: _rounded(value) for name, value in figures.items()}


def combined(parts: Sequence[ModuleReport]) -> ModuleReport:
    """Return the report of a module that is a stack of matrices, from those of the matrices."""
    first = parts[0]
    if len(parts) == 1:
        return first
    warnings: dict[str, None] = {}
    for part in parts:
        warnings |= dict.fromkeys(part.warnings)
    return ModuleReport(
        name=first.name,
        shape=first.shape,
        ranks=tuple(map(max, *(part.ranks for part in parts))),
        norms=tuple(map(hypot, *(part.norms for part in parts))),
        inners=_sums(part.inners for part in parts),
        responses=_sums(part.responses for part in parts),
        mean_norm=hypot(*(part.mean_norm for part in parts)),
        merged_rank=max(part.merged_rank for part in parts),
        merged_norm=hypot(*(part.merged_norm for part in parts)),
        energy_kept=_energy_kept(parts),
        warnings=tuple(warnings),
        fell_back=any(part.fell_back for part in parts),
    )


def with_cut_sources(report: ModuleReport, kept: Sequence[float]) -> ModuleReport:
    """Return the report of a module with what was cut when it was read.

    kept: of each adapter, the share of the squared norm of its file that was read.
    """
    read = sum(norm**2 for norm in report.norms)
    stored = sum(norm**2 / share for norm, share in zip(report.norms, kept, strict=True))
    if read == stored:
        return report
    return replace(report, energy_kept=report.energy_kept * read / stored)


@dataclass(frozen=True)
class MergeReport:
    """The whole merge.

    Attributes:
        method: the method, with its space and plug-ins.
        sources: the adapters, as they were named.
        weights: their weights, on average over the modules.
        anchor: position of the adapter that ``gam`` aligned the others to.
        rank: the largest rank of the output.
        dtype: the dtype of the output.
        modules: one report per module, by name.
        params: the parameters of the method.
        extras: how many tensors of each kind were merged that are not factors.
        notes: facts for the user that no number shows.
        choice: why this method, where another one chose it; None if the user did.

    Example:
        >>> sources = ["examples/adapters/addition", "examples/adapters/sorting"]
        >>> report = gm.merge(sources, method="mean", rank=16).report
        >>> [round(share, 2) for share in report.survival]
        [0.5, 0.5]
        >>> report.worst(1)[0].name.startswith("model.layers.")
        True
    """

    method: str
    sources: tuple[str, ...]
    weights: tuple[float, ...]
    anchor: int
    rank: int
    dtype: str
    modules: tuple[ModuleReport, ...]
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    extras: Mapping[str, int] = field(default_factory=dict[str, int])
    notes: tuple[str, ...] = ()
    choice: Choice | None = None

    @property
    def norms(self) -> tuple[float, ...]:
        """|delta_i| over all modules."""
        return tuple(map(hypot, *(module.norms for module in self.modules)))

    @property
    def merged_norm(self) -> float:
        """|merged| over all modules."""
        return hypot(*(module.merged_norm for module in self.modules))

    @property
    def norm_ratio(self) -> float:
        """|merged| / weighted mean of |delta_i|: 1 if the adapters agree."""
        weights = [abs(weight) for weight in self.weights]
        total = sum(weight * norm for weight, norm in zip(weights, self.norms, strict=True))
        mean = total / sum(weights)
        return self.merged_norm / mean if mean else 0.0

    @property
    def survival(self) -> tuple[float, ...]:
        """<merged, delta_i> / |delta_i|^2 over all modules: the share of each in the result."""
        inners = _sums(module.inners for module in self.modules)
        return tuple(map(_survival, inners, self.norms))

    @property
    def cross_talk(self) -> tuple[float, ...]:
        """The share of the result where adapter i acts that is not along delta_i, in all."""
        own = _sums(module.own for module in self.modules)
        responses = _sums(module.responses for module in self.modules)
        return tuple(map(_cross_talk, own, responses))

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Modules for which float32 was not exact enough: they were computed in float64."""
        return tuple(module.name for module in self.modules if module.fell_back)

    def worst(self, count: int = 10) -> tuple[ModuleReport, ...]:
        """Return the modules in which the least of the adapters survives, worst first."""
        present = [module for module in self.modules if any(module.norms)]
        return tuple(sorted(present, key=_least_survival)[:count])

    @property
    def shared(self) -> int:
        """How many modules all adapters change."""
        return sum(all(module.ranks) for module in self.modules)

    @property
    def energy_kept(self) -> float:
        """The share of the squared norm that the cut to the output rank kept."""
        return _energy_kept(self.modules)

    @property
    def warnings(self) -> dict[str, tuple[str, ...]]:
        """Each warning, with the modules that it is about."""
        modules: dict[str, list[str]] = {}
        for module in self.modules:
            for text in module.warnings:
                modules.setdefault(text, []).append(module.name)
        return {text: tuple(names) for text, names in modules.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: the totals first, then every module."""
        fields = {name: value for name, value in vars(self).items() if name != "modules"}
        fields["choice"] = self.choice and asdict(self.choice)
        figures = {name: getattr(self, name) for name in _TOTALS}
        return {**fields, **figures, "modules": [module.to_dict() for module in self.modules]}


_TOTALS = (
    "norms", "merged_norm", "norm_ratio", "survival", "cross_talk", "shared", "energy_kept",
    "fallbacks", "warnings",
)  # fmt: skip


def _rounded(value: Any) -> Any:
    """Return a number or several to six significant digits; anything else as it is."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return tuple(map(_rounded, value)) if isinstance(value, tuple) else value


def _sums(rows: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """Return the sum of each column."""
    return tuple(map(sum, zip(*rows, strict=True)))


def _survival(inner: float, norm: float) -> float:
    return inner / norm**2 if norm**2 else 0.0


def _own(inner: float, norm: float) -> float:
    return (inner / norm) ** 2 if norm else 0.0


def _cross_talk(own: float, response: float) -> float:
    return max(0.0, 1 - own / response) if response else 0.0


def _energy_kept(modules: Sequence[ModuleReport]) -> float:
    """Return |cut|^2 / |uncut|^2 over some modules, 1 if there was nothing to cut."""
    cut, uncut = 0.0, 0.0
    for module in modules:
        if module.energy_kept:
            cut += module.merged_norm**2
            uncut += module.merged_norm**2 / module.energy_kept
    return cut / uncut if uncut else 1.0


def _least_survival(module: ModuleReport) -> float:
    """Return survival summed over energy: <merged, sum of deltas> / sum of |delta_i|^2."""
    return sum(module.inners) / sum(norm**2 for norm in module.norms)


def erasure_notes(report: MergeReport) -> list[str]:
    """Return a note where a method that should average lost most of what averaging keeps.

    The mean keeps its weight of an adapter that shares nothing with the others. Of a zero adapter
    there is nothing to keep, who scales the result knows what is left, and a method that was chosen
    comes with its reason.
    """
    if report.choice is not None or report.params.get("scale", 1.0) != 1.0:
        return []
    columns = zip(report.survival, report.weights, report.norms, strict=True)
    shares = [(share, weight) for share, weight, norm in columns if norm]
    if len(shares) < 2 or any(share >= weight / 2 for share, weight in shares):
        return []
    return [
        f"{report.method} keeps at most {100 * max(report.survival):.0f} % of each adapter: they "
        "share few directions, and what one has alone is filtered out; -m auto, the default, does "
        "not do that"
    ]
