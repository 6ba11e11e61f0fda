"""Measures of several adapters without data, as sums over modules.

Tensor legend: ``N`` adapters, ``m`` out, ``n`` in, ``k`` numerical ranks. ``U``, ``V`` are
orthonormal bases of the column and row spaces of the deltas. ``...`` runs over modules or groups
of them.

The overlap of two subspaces is the mean squared cosine of their principal angles,
|U_i^T U_j|^2 / min(k_i, k_j). For independent random subspaces of R^m the numerator has mean
k_i k_j / m, since the projector onto a random subspace of dimension k has mean k / m times the
identity; so the chance level is max(k_i, k_j) / m.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_MERGES = ("mean_energy", "gam_energy")  # the fields that belong to all adapters together


@dataclass(frozen=True, eq=False)
class Measures:
    """Sums over modules that relate two adapters i and j; ratios of these sums are properties.

    Fields are (..., N, N) unless a comment says otherwise. An entry is zero where either of the two
    adapters lacks the module.
    Properties in the plural are (..., N, N); those in the singular are (...), over all pairs of
    different adapters. A ratio is NaN where there is nothing to divide by.

    Example:
        >>> total = gm.compare(["examples/adapters/addition", "examples/adapters/sorting"]).total
        >>> bool(total.overlap_u > 2 * total.chance_u)
        True
        >>> total.cosines.shape
        (2, 2)
    """

    gram: Array  # <delta_i, delta_j>
    squares_u: Array  # |U_i^T U_j|^2
    squares_v: Array  # |V_i^T V_j|^2
    expected_u: Array  # k_i k_j / m, the chance level of squares_u
    expected_v: Array  # k_i k_j / n
    angles: Array  # min(k_i, k_j), how many principal angles there are
    common: Array  # |U_j U_j^T delta_i V_j V_j^T|^2
    expected_common: Array  # |delta_i|^2 (k_j / m) (k_j / n)
    held: Array  # |delta_i|^2 where j has a delta too
    same_sign: Array  # sampled entries in which delta_i and delta_j have the same sign
    sampled: Array  # sampled entries in which neither is zero
    mean_energy: Array  # (...) |mean|^2, exact
    gam_energy: Array  # (...) |gam|^2, exact

    def __getitem__(self, index: int | Sequence[int]) -> "Measures":
        """Return the measures of the modules of an index."""
        return Measures(*(getattr(self, field.name)[index] for field in fields(self)))

    def sum(self) -> "Measures":
        """Return the measures of all modules together."""
        return Measures(*(getattr(self, field.name).sum(0) for field in fields(self)))

    def pair(self, i: int, j: int) -> "Measures":
        """Return the measures of two adapters alone: (..., 2, 2).

        The energies of the merges are NaN, as they belong to all adapters.
        """
        block = np.s_[..., [[i], [j]], [i, j]]
        values: dict[str, Array] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            merged = field.name in _MERGES
            values[field.name] = np.full_like(value, np.nan) if merged else value[block]
        return Measures(**values)

    @property
    def norms(self) -> Array:
        """|delta_i|: (..., N)."""
        return np.sqrt(np.diagonal(self.gram, axis1=-2, axis2=-1).clip(min=0))

    @property
    def cosines(self) -> Array:
        """<delta_i, delta_j> / (|delta_i| |delta_j|)."""
        return _ratio(self.gram, self.norms[..., :, None] * self.norms[..., None, :])

    @property
    def overlaps_u(self) -> Array:
        """Mean squared cosine of the principal angles between two column spaces."""
        return _ratio(self.squares_u, self.angles)

    @property
    def overlaps_v(self) -> Array:
        """Mean squared cosine of the principal angles between two row spaces."""
        return _ratio(self.squares_v, self.angles)

    @property
    def chances_u(self) -> Array:
        """Expected value of overlaps_u for independent random subspaces."""
        return _ratio(self.expected_u, self.angles)

    @property
    def chances_v(self) -> Array:
        """Expected value of overlaps_v for independent random subspaces."""
        return _ratio(self.expected_v, self.angles)

    @property
    def commons(self) -> Array:
        """Share of the energy of delta_i in the column and row space of delta_j."""
        return _ratio(self.common, self.held)

    @property
    def sign_agreements(self) -> Array:
        """Share of sampled entries in which two deltas have the same sign."""
        return _ratio(self.same_sign, self.sampled)

    @property
    def overlap_u(self) -> Array:
        """Mean squared cosine of the principal angles between column spaces."""
        return _ratio(_pairs(self.squares_u), _pairs(self.angles))

    @property
    def overlap_v(self) -> Array:
        """Mean squared cosine of the principal angles between row spaces."""
        return _ratio(_pairs(self.squares_v), _pairs(self.angles))

    @property
    def chance_u(self) -> Array:
        """Expected value of overlap_u for independent random subspaces."""
        return _ratio(_pairs(self.expected_u), _pairs(self.angles))

    @property
    def chance_v(self) -> Array:
        """Expected value of overlap_v for independent random subspaces."""
        return _ratio(_pairs(self.expected_v), _pairs(self.angles))

    @property
    def times_chance_u(self) -> Array:
        """overlap_u / chance_u: the figure that warns, as cosines of real deltas are near zero."""
        return _ratio(self.overlap_u, self.chance_u)

    @property
    def times_chance_v(self) -> Array:
        """overlap_v / chance_v."""
        return _ratio(self.overlap_v, self.chance_v)

    @property
    def above_chance_u(self) -> Array:
        """(overlap_u - chance_u) / (1 - chance_u): 0 at chance, 1 for equal subspaces."""
        return _ratio(self.overlap_u - self.chance_u, 1 - self.chance_u)

    @property
    def above_chance_v(self) -> Array:
        """(overlap_v - chance_v) / (1 - chance_v)."""
        return _ratio(self.overlap_v - self.chance_v, 1 - self.chance_v)

    @property
    def cosine(self) -> Array:
        """Mean cosine of two deltas, over pairs in which neither is zero."""
        cosines = self.cosines
        defined = np.isfinite(cosines).astype(np.float64)
        return _ratio(_pairs(np.nan_to_num(cosines)), _pairs(defined))

    @property
    def common_energy(self) -> Array:
        """Share of the energy of a delta in the column and row space of another."""
        return _ratio(_pairs(self.common), _pairs(self.held))

    @property
    def chance_common(self) -> Array:
        """Expected value of common_energy for independent random subspaces."""
        return _ratio(_pairs(self.expected_common), _pairs(self.held))

    @property
    def sign_agreement(self) -> Array:
        """Share of sampled entries in which two deltas have the same sign; 0.5 is chance."""
        return _ratio(_pairs(self.same_sign), _pairs(self.sampled))

    @property
    def mean_norm(self) -> Array:
        """|mean| with the weights of the comparison, before any truncation to a rank."""
        return np.sqrt(self.mean_energy)

    @property
    def gam_norm(self) -> Array:
        """|gam| with the weights and the anchor of the comparison."""
        return np.sqrt(self.gam_energy)

    @property
    def gam_to_mean(self) -> Array:
        """|gam| / |mean|: what remains after alignment to a consensus."""
        return _ratio(self.gam_norm, self.mean_norm)

    def scalars(self) -> dict[str, Array]:
        """Return the figures that are one number, (...) each, by name."""
        return {
            "overlap_u": self.overlap_u,
            "chance_u": self.chance_u,
            "times_chance_u": self.times_chance_u,
            "overlap_v": self.overlap_v,
            "chance_v": self.chance_v,
            "times_chance_v": self.times_chance_v,
            "cosine": self.cosine,
            "common_energy": self.common_energy,
            "chance_common": self.chance_common,
            "sign_agreement": self.sign_agreement,
            "mean_norm": self.mean_norm,
            "gam_norm": self.gam_norm,
            "gam_to_mean": self.gam_to_mean,
        }

    def matrices(self) -> dict[str, Array]:
        """Return the figures of pairs, (..., N, N) each, by name."""
        return {
            "gram": self.gram,
            "cosines": self.cosines,
            "overlaps_u": self.overlaps_u,
            "chances_u": self.chances_u,
            "overlaps_v": self.overlaps_v,
            "chances_v": self.chances_v,
            "commons": self.commons,
            "sign_agreements": self.sign_agreements,
        }


def _pairs(x: Array) -> Array:
    """Sum over all pairs of different adapters: (..., N, N) -> (...)."""
    return x.sum((-2, -1)) - np.trace(x, axis1=-2, axis2=-1)


def _ratio(x: Array, y: Array) -> Array:
    """Return x / y, NaN where there is nothing to divide by."""
    return np.divide(x, y, out=np.full(np.shape(x), np.nan), where=np.asarray(y) > 0)
