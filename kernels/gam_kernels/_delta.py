"""Factored deltas in orthonormal coordinates, their inner products and norms.

``L`` modules, ``m`` rows (out), ``n`` columns (in), ``r`` columns of the given factors, ``k`` numerical rank.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gam_kernels._basis import gram, orthonormalize

_EPS64 = torch.finfo(torch.float64).eps


class Delta(NamedTuple):
    """A stack of low-rank matrices ``delta = (b u) core (a v)^T``, with ``b u`` and ``a v`` orthonormal.

    ``b`` and ``a`` are tall and stay as they were read; all that methods compute with is small.
    """

    b: Tensor  # (L, m, r)
    a: Tensor  # (L, n, r)
    u: Tensor  # (L, r, k) float64
    v: Tensor  # (L, r, k) float64
    core: Tensor  # (L, k, k) float64
    rank: Tensor  # (L,) int64, numerical rank; what lies beyond it in u, v and core is zero
    wide: Tensor  # (L,) bool, products with b and a must be formed in float64

    def select(self, index: Tensor, rank: int, dtype: torch.dtype) -> "Delta":
        """The modules of ``index``, all of numerical rank ``rank``, with ``b`` and ``a`` in ``dtype``."""
        if len(index) < len(self.rank) or not torch.equal(index, torch.arange(len(index), device=index.device)):
            b, a, u, v, core, known, wide = (field[index] for field in self)
        else:
            b, a, u, v, core, known, wide = self
        small = u[..., :rank], v[..., :rank], core[..., :rank, :rank]
        return Delta(b.to(dtype), a.to(dtype), *small, known, wide)


def factored_delta(b: Tensor, a: Tensor, scale: Tensor) -> Delta:
    """The deltas ``scale * b a^T`` in orthonormal coordinates.

    b: (L, m, r), a: (L, n, r), float32 or float64, scale: (L,) -> Delta with k = r, zero beyond the numerical rank.
    The numerical rank is decided in float64: singular values up to eps * max(m, n) * the largest count as zero.
    A module with NaN or Inf has a non-finite core.
    """
    left, right = orthonormalize(b), orthonormalize(a)
    core = (left.core @ right.core.mT) * scale.double()[:, None, None]  # (L, r, r)
    u, v, rank = left.coef, right.coef, torch.minimum(left.rank, right.rank)
    unsure = (left.revealed | right.revealed) & core.isfinite().all(-1).all(-1)
    if unsure.any():  # elsewhere both factors are well conditioned, hence so is the core
        p, s, qt = torch.linalg.svd(core[unsure])
        kept = s > _EPS64 * max(b.shape[-2], a.shape[-2]) * s[..., :1]  # (L', r)
        core[unsure] = torch.diag_embed(s * kept)
        u[unsure] = left.coef[unsure] @ (p * kept.unsqueeze(-2))
        v[unsure] = right.coef[unsure] @ (qt.mT * kept.unsqueeze(-2))
        rank[unsure] = kept.sum(-1)
    return Delta(left.factor, right.factor, u, v, core, rank, left.wide | right.wide)


def inner(x: Delta, b: Tensor, a: Tensor) -> Tensor:
    """Frobenius inner products ``<delta, b a^T>`` without forming either matrix.

    b: (L, m, k), a: (L, n, k) -> (L,) float64, by tr(delta^T b a^T) = sum((u^T b^T b') * (core v^T a^T a')).
    """
    return ((x.u.mT @ _mixed(x.b, b)) * (x.core @ (x.v.mT @ _mixed(x.a, a)))).sum((-2, -1))


def norm(x: Delta) -> Tensor:
    """Frobenius norms of the deltas: (L,) float64, read off the cores."""
    return torch.linalg.matrix_norm(x.core)


def _mixed(x: Tensor, y: Tensor) -> Tensor:
    """x^T y as float64, formed in the wider of the two dtypes."""
    if torch.float64 in (x.dtype, y.dtype):
        return gram(x, y)
    return (x.mT @ y).double()
