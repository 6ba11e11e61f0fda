"""One adapter: the result of ``inspect``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import exp, log, sqrt
from typing import Any, ClassVar

import numpy as np

from gam_merge._common.names import shortened
from gam_merge._diagnose.panels import MOST_CURVES, Curve, Curves, Panel, Sheet, spectra
from gam_merge._diagnose.result import Result

_TOP = (1, 2, 4, 8, 16, 32, 64, 128)  # ranks whose share of the energy is reported


@dataclass(frozen=True)
class ModuleInspection:
    """One module of an adapter.

    ``zero`` names the factor that is all zero, ``broken`` the factor that is not finite; or the
    product, if that vanishes or is too large to merge.

    Example:
        >>> module = gm.inspect("examples/adapters/addition").modules[0]
        >>> module.name, module.shape, module.rank, module.scale
        ('model.layers.0.mlp.down_proj', (576, 1536), 8, 2.0)
        >>> round(module.norm, 2), round(module.effective_rank, 1)
        (0.49, 7.4)
    """

    name: str
    shape: tuple[int, int]  # (out, in)
    rank: int  # of its factors
    scale: float
    dtype: str
    parameters: int
    spectrum: tuple[float, ...]  # nonzero singular values of the delta, descending
    zero: str | None = None
    broken: str | None = None

    @property
    def norm(self) -> float:
        """|delta|."""
        return sqrt(self.energy())

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the normalised singular values, 0 for a delta of zero.

        As many equal singular values have the same entropy (Roy and Vetterli, EUSIPCO 2007).
        """
        total = sum(self.spectrum)
        if not total:
            return 0.0
        return exp(-sum(s / total * log(s / total) for s in self.spectrum))

    def energy(self, rank: int | None = None) -> float:
        """Return |delta|^2, or the part of it in the ``rank`` largest singular values."""
        return sum(s * s for s in self.spectrum[:rank])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**asdict(self), "norm": self.norm, "effective_rank": self.effective_rank}


@dataclass(frozen=True)
class Part:
    """Several modules of an adapter, or all of them.

    Example:
        >>> part = gm.inspect("examples/adapters/addition").by("type")["self_attn.v_proj"]
        >>> len(part.modules), part.parameters
        (30, 184320)
        >>> round(part.energy_share(4), 3)
        0.972
    """

    modules: tuple[ModuleInspection, ...]

    @property
    def parameters(self) -> int:
        """The number of parameters."""
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
        """Return the share of the energy that truncating every module to ``rank`` keeps."""
        total = sum(module.energy() for module in self.modules)
        return sum(module.energy(rank) for module in self.modules) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        highest = max((module.rank for module in self.modules), default=0)
        return {
            "modules": len(self.modules),
            "parameters": self.parameters,
            "norm": self.norm,
            "effective_rank": self.effective_rank,
            "energy_share": {str(rank): self.energy_share(rank) for rank in _TOP if rank < highest},
        }


@dataclass(frozen=True)
class Inspection(Result[Part]):
    """One adapter: its modules and what is wrong with it.

    ``settings`` are the fields of its config that make it more than a plain LoRA; ``problems``
    the reasons for which a merge would refuse it, ``notes`` how it was read.

    Example:
        >>> inspection = gm.inspect("examples/adapters/addition")
        >>> inspection.ranks, inspection.scales, inspection.dtype
        ((8,), (2.0,), 'bfloat16')
        >>> inspection.problems, inspection.zero, inspection.broken
        ((), (), ())
        >>> round(inspection.total.norm, 2)
        8.55
    """

    source: str
    base_model: str | None
    dtype: str | None  # that holds all factors, None without factors
    settings: Mapping[str, Any]
    problems: tuple[str, ...]
    modules: tuple[ModuleInspection, ...]
    extras: Mapping[str, int] = field(default_factory=dict[str, int])  # other tensors, by kind
    notes: tuple[str, ...] = ()

    _template: ClassVar[str] = "inspection.html"

    def _part(self, members: Sequence[int]) -> Part:
        return Part(tuple(self.modules[j] for j in members))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The distinct ranks."""
        return tuple(sorted({module.rank for module in self.modules}))

    @property
    def scales(self) -> tuple[float, ...]:
        """The distinct scales."""
        return tuple(sorted({module.scale for module in self.modules}))

    @property
    def zero(self) -> tuple[str, ...]:
        """Modules whose delta is zero: never trained, or their factors were lost."""
        return tuple(module.name for module in self.modules if module.zero)

    @property
    def broken(self) -> tuple[str, ...]:
        """Modules with NaN, Inf or numbers too large to merge."""
        return tuple(module.name for module in self.modules if module.broken)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: the adapter, its layers, its types, its modules."""
        return {
            "source": self.source,
            "base_model": self.base_model,
            "dtype": self.dtype,
            "ranks": list(self.ranks),
            "scales": list(self.scales),
            "settings": dict(self.settings),
            "extras": dict(self.extras),
            "problems": list(self.problems),
            "notes": list(self.notes),
            "zero": list(self.zero),
            "broken": list(self.broken),
            "total": self.total.to_dict(),
            "layers": {label: part.to_dict() for label, part in self.by("layer").items()},
            "types": {label: part.to_dict() for label, part in self.by("type").items()},
            "modules": [module.to_dict() for module in self.modules],
        }

    def _sheet(self) -> Sheet:
        all_types = self.by("type")
        names, types = shortened(all_types), _largest(all_types)
        of_types = {}
        curves = []
        for label, part in types.items():
            of_types[names[label]] = [module.spectrum for module in part.modules]
            curves.append(_energy_curve(names[label], part))
        panels: dict[str, Panel] = {
            "norm": self._heatmap("norm of the delta", "norm"),
            "rank": self._heatmap("effective rank", "effective_rank"),
            "spectra": spectra(of_types),
            "energy": Curves("energy kept after truncation", "rank", "share of energy", curves),
        }
        return Sheet(panels, [["norm"] * 2, ["rank"] * 2, ["spectra", "energy"]])


def _largest(parts: Mapping[str, Part]) -> dict[str, Part]:
    """Return the parts of the largest norms, as many as curves can be told apart, in order."""
    kept = set(sorted(parts, key=lambda label: -parts[label].norm)[:MOST_CURVES])
    return {label: part for label, part in parts.items() if label in kept}


def _energy_curve(label: str, part: Part) -> Curve:
    """Return the share of energy that truncation to each rank keeps."""
    highest = max(module.rank for module in part.modules)
    shares = np.array([part.energy_share(rank) for rank in range(highest + 1)])
    return Curve(label, np.arange(0.0, highest + 1), shares)
