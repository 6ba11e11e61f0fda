"""Factored deltas in orthonormal coordinates, their inner products and norms.

``L`` modules, ``m`` rows (out), ``n`` columns (in), ``r`` columns of the given factors, ``k``
numerical rank.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gam_kernels._basis import orthonormalize

_EPS64 = torch.finfo(torch.float64).eps
# Columns whose products spread wider may leave a core without full rank, though both factors have
# it.
_GRADED = 1e-3


class Delta(NamedTuple):
    """A stack of low-rank matrices ``delta = (b u) core (a v)^T``, ``b u`` and ``a v`` orthonormal.

    Products of full size are mostly formed with ``b`` and ``a`` in their dtype; Gram matrices in
    float64, of ``exact_b`` and ``exact_a``. Those are the same tensors unless a basis had to be
    formed anew, in float64.
    """

    b: Tensor  # (L, m, r) float32 or float64
    a: Tensor  # (L, n, r)
    exact_b: Tensor  # (L, m, r) float32 or float64
    exact_a: Tensor  # (L, n, r)
    u: Tensor  # (L, r, k) float64
    v: Tensor  # (L, r, k) float64
    core: Tensor  # (L, k, k) float64
    rank: Tensor  # (L,) int64, numerical rank; what lies beyond it in u, v and core is zero
    wide: Tensor  # (L,) bool, b and a of such a module do not serve: products need b64 and a64

    @property
    def b64(self) -> Tensor:
        """(L, m, r) float64."""
        return self.exact_b.double()

    @property
    def a64(self) -> Tensor:
        """(L, n, r) float64."""
        return self.exact_a.double()

    def select(self, index: Tensor, *, rank: int, wide: bool) -> "Delta":
        """Return the modules of ``index`` (sorted), all of numerical rank ``rank``.

        If ``wide``, b and a are b64 and a64.
        """
        x = self
        if len(index) < len(self.rank):
            # One copy of fields that are the same tensor.
            taken = {id(field): field[index] for field in self}
            x = Delta(*(taken[id(field)] for field in self))
        u, v, core = x.u[..., :rank], x.v[..., :rank], x.core[..., :rank, :rank]
        if wide:
            b, a = x.b64, x.a64
            return Delta(b, a, b, a, u, v, core, x.rank, x.wide)
        return x._replace(u=u, v=v, core=core)


def factored_delta(
    b: Tensor, a: Tensor, scale: Tensor, grams: tuple[Tensor, Tensor] | None = None
) -> Delta:
    """Return the deltas ``scale * b a^T`` in orthonormal coordinates.

    b: (L, m, r), a: (L, n, r), float32 or float64, scale: (L,) -> Delta with k = r, zero beyond the
    numerical rank.
    grams: the Gram matrices of b and of a, (L, r, r) float64, if they are known. The numerical rank
    is decided in float64: singular values up to eps * max(m, n) * the largest count as zero. A
    module with NaN or Inf has a non-finite core.
    """
    eps = torch.finfo(b.dtype).eps
    g_b, g_a = grams or (None, None)
    left, right = orthonormalize(b, eps=eps, g=g_b), orthonormalize(a, eps=eps, g=g_a)
    core = (left.core @ right.core.mT) * scale.double()[:, None, None]  # (L, r, r)
    u, v, rank = left.coef, right.coef, torch.minimum(left.rank, right.rank)
    # Norms of the products of column j: (L, r).
    parts = left.core.norm(dim=-2) * right.core.norm(dim=-2)
    graded = parts.amin(-1) < _GRADED * parts.amax(-1)
    unsure = (left.revealed | right.revealed | graded) & core.isfinite().flatten(1).all(-1)  # (L,)
    if unsure.any():  # elsewhere both factors are well conditioned, and so is the core
        p, s, qt = torch.linalg.svd(core[unsure])
        kept = s > _EPS64 * max(b.shape[-2], a.shape[-2]) * s[..., :1]  # (L', r)
        core[unsure] = torch.diag_embed(s * kept)
        u[unsure] = left.coef[unsure] @ (p * kept.unsqueeze(-2))
        v[unsure] = right.coef[unsure] @ (qt.mT * kept.unsqueeze(-2))
        rank[unsure] = kept.sum(-1)
    return Delta(b, a, left.factor, right.factor, u, v, core, rank, left.wide | right.wide)


def response(x: Delta, b: Tensor, a: Tensor) -> Tensor:
    """Return ``U^T (b a^T) V``, a factored matrix between the column and row spaces of the deltas.

    b: (L, m, r'), a: (L, n, r') -> (L, k, k) float64. The products with b and a are formed in their
    dtype where every module of ``x`` allows it, else in float64. Its inner product with ``x.core``
    is that of the matrix with the delta.
    """
    narrow = b.dtype == x.b.dtype and not x.wide.any()
    b_x, a_x = (x.b, x.a) if narrow else (x.b64, x.a64)
    left, right = b_x.mT @ b.to(b_x.dtype), a_x.mT @ a.to(a_x.dtype)  # (L, r, r') each
    return (x.u.mT @ left.double()) @ (x.v.mT @ right.double()).mT


def norm(x: Delta) -> Tensor:
    """Return the Frobenius norms of the deltas: (L,) float64, read off the cores."""
    return torch.linalg.matrix_norm(x.core)


def product_norm(b: Tensor, a: Tensor) -> Tensor:
    """Return the Frobenius norms of the products ``b a^T``, formed in their dtype.

    b: (L, m, k), a: (L, n, k) -> (L,) float64.
    """
    return ((b.mT @ b).double() * (a.mT @ a).double()).sum((-2, -1)).clamp(min=0.0).sqrt()
