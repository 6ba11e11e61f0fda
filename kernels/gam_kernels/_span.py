"""Orthonormal bases of what several subspaces span together.

``L`` modules, ``m`` rows, ``k`` columns: orthonormal bases side by side, so that only their overlap
makes them ill-conditioned.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Eigenvalues of a Gram matrix carry an absolute error of about eps: above this share of the
# largest, they and the basis that they lead to are good to 1e-11. Below it the stack itself is
# decomposed.
_SURE = 1e-4
# As for a single basis: amplification of rounding that products in the caller's dtype may show.
_NARROW = 2e-6
_EPS64 = torch.finfo(torch.float64).eps


class Span(NamedTuple):
    """Orthonormal bases ``q = x @ coef`` of the columns of ``x = q @ coords``.

    Columns of q are in the order of falling singular values of x.
    Columns of ``coef`` and rows of ``coords`` at and beyond a module's ``rank`` are zero.
    """

    coef: Tensor  # (L, k, k) float64
    coords: Tensor  # (L, k, k) float64
    rank: Tensor  # (L,) int64
    wide: Tensor  # (L,) bool, x @ coef must be formed in float64

    def select(self, index: Tensor, rank: int | None = None) -> "Span":
        """Return the modules of ``index``, cut to a rank that they all have."""
        return Span(
            self.coef[index, :, :rank],
            self.coords[index, :rank],
            self.rank[index],
            self.wide[index],
        )


def span(g: Tensor, x: Callable[[Tensor], Tensor], *, rows: int, eps: float) -> Span:
    """Return joint orthonormal bases from Gram matrices, or from the stack if those are too rough.

    g: (L, k, k) float64 = x^T x. x: gives the stack (L', m, k) in float64 of the modules of an
    index. rows: m.
    eps: of the dtype in which products with x are to be formed.
    Singular values up to eps64 * max(m, k) * the largest count as zero.
    """
    values, w = torch.linalg.eigh(g)
    s, w = values.clamp(min=0.0).sqrt().flip(-1), w.flip(-1)  # (L, k) falling, (L, k, k)
    unsure = values[:, 0] <= _SURE * values[:, -1]  # (L,)
    if unsure.any():
        index = unsure.nonzero().squeeze(-1)
        stack = x(index)  # (L', m, k)
        _, s_full, wt = torch.linalg.svd(torch.linalg.qr(stack, mode="r")[1], full_matrices=False)
        count = s_full.shape[-1]  # min(m, k)
        s[index] = torch.nn.functional.pad(s_full, (0, s.shape[-1] - count))
        w[index, :, :count] = wt.mT
    kept = s > _EPS64 * max(rows, g.shape[-1]) * s[:, :1]  # (L, k)
    inverse = torch.where(kept, 1 / s, 0.0)
    rank = kept.sum(-1)
    amplification = (inverse.square().sum(-1) / rank.clamp(min=1)).sqrt()
    coords = torch.where(kept, s, 0.0).unsqueeze(-1) * w.mT
    return Span(w * inverse.unsqueeze(-2), coords, rank, ~(amplification * eps <= _NARROW))
