"""What a method sees: the deltas of one bucket in orthonormal coordinates, and what it gives back.

Tensor legend: ``N`` adapters, ``L`` modules in the bucket, ``m`` out, ``n`` in, ``r`` rank, ``R`` sum of ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from gam_kernels import Delta, gram


@dataclass(frozen=True)
class Bucket:
    """Modules of one shape, seen through the adapters whose delta there is not zero.

    Every delta has full numerical rank: ``delta_i = U_i core_i V_i^T`` with orthonormal ``U_i = b_i u_i`` (L, m, k_i),
    ``V_i = a_i v_i`` (L, n, k_i) and a regular core (L, k_i, k_i). ``adapters`` are their positions in the merge.
    """

    names: tuple[str, ...]
    shape: tuple[int, int]  # (m, n)
    adapters: tuple[int, ...]
    deltas: tuple[Delta, ...]
    anchor: int = 0  # position in the merge of the adapter that the user wants the others aligned to

    @property
    def ranks(self) -> tuple[int, ...]:
        """k_i, the numerical ranks."""
        return tuple(delta.core.shape[-1] for delta in self.deltas)

    @property
    def reference(self) -> int:
        """Index into ``deltas`` of the one to align to: the anchor if none has a higher rank, else the first of the
        highest. Aligning to a smaller rank would cut the others down without a word."""
        highest = max(self.ranks)
        if self.anchor in self.adapters and self.ranks[position := self.adapters.index(self.anchor)] == highest:
            return position
        return self.ranks.index(highest)

    def cross(self, i: int, j: int) -> tuple[Tensor, Tensor]:
        """U_i^T U_j and V_i^T V_j: (L, k_i, k_j) float64, from the factors as they were read."""
        x, y = self.deltas[i], self.deltas[j]
        return x.u.mT @ gram(x.b64, y.b64) @ y.u, x.v.mT @ gram(x.a64, y.a64) @ y.v

    @cached_property
    def stacked_grams(self) -> tuple[Tensor, Tensor]:
        """Gram matrices of [b_1 ... b_N] and of [a_1 ... a_N]: (L, R, R) float64. Cost grows with N^2."""
        b, a = torch.cat([x.b64 for x in self.deltas], -1), torch.cat([x.a64 for x in self.deltas], -1)
        return gram(b, b), gram(a, a)


@dataclass(frozen=True)
class Merged:
    """A merged bucket in coefficients of the stacked factors: merged = [b_1 ... b_N] left right^T [a_1 ... a_N]^T.

    ``left`` and ``right`` are (L, R, k) float64. ``warnings`` says in words what was doubtful, for which modules.
    """

    left: Tensor
    right: Tensor
    warnings: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])  # text -> (L,) bool
