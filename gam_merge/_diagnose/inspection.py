"""One adapter: what ``inspect`` found."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import exp, log, sqrt
from os import PathLike
from pathlib import Path
from typing import Any

from gam_merge._common.names import By, Grid, grid, group
from gam_merge._diagnose.documents import save_html, save_plot

_TOP = (
    1,
    2,
    4,
    8,
    16,
    32,
    64,
    128,
)  # ranks for which the energy of the largest singular values is told


@dataclass(frozen=True)
class ModuleInspection:
    """One module of an adapter. ``zero`` and ``broken`` name the factor that is all zero, or not finite; or the
    product, that vanishes or is too large to merge."""

    name: str
    shape: tuple[int, int]  # (out, in)
    rank: int  # of its factors
    scale: float
    dtype: str
    parameters: int
    spectrum: tuple[float, ...]  # singular values of the delta that are not zero, descending
    zero: str | None = None
    broken: str | None = None

    @property
    def norm(self) -> float:
        """|delta|."""
        return sqrt(self.energy())

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007): how many equal ones
        have the same entropy. 0 for a delta of zero."""
        total = sum(self.spectrum)
        return exp(-sum(s / total * log(s / total) for s in self.spectrum)) if total else 0.0

    def energy(self, rank: int | None = None) -> float:
        """|delta|^2, or what of it is in the ``rank`` largest singular values."""
        return sum(s * s for s in self.spectrum[:rank])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "norm": self.norm, "effective_rank": self.effective_rank}


@dataclass(frozen=True)
class Part:
    """Some modules of an adapter, or all of them."""

    modules: tuple[ModuleInspection, ...]

    @property
    def parameters(self) -> int:
        return sum(module.parameters for module in self.modules)

    @property
    def norm(self) -> float:
        """|delta| over these modules."""
        return sqrt(sum(module.energy() for module in self.modules))

    @property
    def effective_rank(self) -> float:
        """The mean over the modules that are not zero."""
        ranks = [module.effective_rank for module in self.modules if module.spectrum]
        return sum(ranks) / len(ranks) if ranks else 0.0

    def energy_share(self, rank: int) -> float:
        """The share of energy that a cut of every module to ``rank`` would keep."""
        total = sum(module.energy() for module in self.modules)
        return sum(module.energy(rank) for module in self.modules) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        most = max((module.rank for module in self.modules), default=0)
        return {
            "modules": len(self.modules),
            "parameters": self.parameters,
            "norm": self.norm,
            "effective_rank": self.effective_rank,
            "energy_share": {str(rank): self.energy_share(rank) for rank in _TOP if rank < most},
        }


@dataclass(frozen=True)
class Inspection:
    """One adapter. ``settings`` are the fields of its config that make it more than a plain LoRA; ``problems`` what a
    merge would refuse and why."""

    source: str
    base_model: str | None
    dtype: str | None  # that holds all factors, None without factors
    settings: Mapping[str, Any]
    problems: tuple[str, ...]
    modules: tuple[ModuleInspection, ...]
    extras: Mapping[str, int] = field(
        default_factory=dict[str, int]
    )  # tensors that are no factors, by kind

    @cached_property
    def total(self) -> Part:
        """All modules."""
        return Part(self.modules)

    def by(self, part: By) -> dict[str, Part]:
        """By layer, type or module, in natural order."""
        groups = group([module.name for module in self.modules], part)
        return {
            label: Part(tuple(self.modules[j] for j in members))
            for label, members in groups.items()
        }

    def grid(self, figure: str) -> Grid:
        """One of the figures of ``Part`` that is a number, such as "norm", by layer and type."""
        names = [module.name for module in self.modules]
        return grid(
            names, lambda members: getattr(Part(tuple(self.modules[j] for j in members)), figure)
        )

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that occur."""
        return tuple(sorted({module.rank for module in self.modules}))

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales that occur."""
        return tuple(sorted({module.scale for module in self.modules}))

    @property
    def zero(self) -> tuple[str, ...]:
        """Modules whose delta is zero: they were never trained, or lost their factors."""
        return tuple(module.name for module in self.modules if module.zero)

    @property
    def broken(self) -> tuple[str, ...]:
        """Modules with NaN or Inf, or with numbers too large to merge."""
        return tuple(module.name for module in self.modules if module.broken)

    def save_plot(self, path: str | PathLike[str]) -> Path:
        """Write all figures on one sheet: .png, .svg or .pdf. Needs matplotlib. Raises GamMergeError."""
        return save_plot(self, path)

    def save_html(self, path: str | PathLike[str]) -> Path:
        """Write a report of one HTML file that needs nothing else. Needs matplotlib, jinja2. Raises GamMergeError."""
        return save_html(self, path)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the adapter, its layers, its types, its modules."""
        return {
            "source": self.source,
            "base_model": self.base_model,
            "dtype": self.dtype,
            "ranks": list(self.ranks),
            "scales": list(self.scales),
            "settings": dict(self.settings),
            "extras": dict(self.extras),
            "problems": list(self.problems),
            "zero": list(self.zero),
            "broken": list(self.broken),
            "total": self.total.to_dict(),
            "layers": {name: part.to_dict() for name, part in self.by("layer").items()},
            "types": {name: part.to_dict() for name, part in self.by("type").items()},
            "modules": [module.to_dict() for module in self.modules],
        }
