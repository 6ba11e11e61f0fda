"""Singular value decompositions of factored matrices, and truncation to a rank or an energy.

``L`` modules, ``m`` rows, ``n`` columns, ``R`` columns of the stacked factors, ``k`` width of a
product.
"""

import torch
from torch import Tensor


def rank_for_energy(s: Tensor, energy: float, *, total: Tensor | None = None) -> Tensor:
    """Return the fewest singular values that hold a share ``energy`` of the squared Frobenius norm.

    s: (..., k) descending, 0 < energy <= 1 -> (...) int64, 0 for an all-zero spectrum. The share is
    compared with a slack of a few eps, so that energy = 1 keeps no rounding noise.
    total: (...) the squared norm, if ``s`` holds only the leading values; k + 1 is returned where
    these do not suffice.
    """
    total = s.square().sum(-1, keepdim=True) if total is None else total.unsqueeze(-1)
    missing = total - s.square().cumsum(-1)  # energy lost if the spectrum is cut after each value
    slack = 4 * torch.finfo(s.dtype).eps * s.shape[-1]
    enough = missing <= (1.0 - energy + slack) * total
    return torch.where(total.squeeze(-1) > 0, (~enough).sum(-1) + 1, 0)


def compress(
    left: Tensor, right: Tensor, gram_b: Tensor, gram_a: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the balanced singular form of ``b left right^T a^T``, found from Gram matrices alone.

    left, right: (L, R, k) coefficients of stacked factors b (L, m, R) and a (L, n, R); gram_b = b^T
    b and gram_a = a^T a: (L, R, R) float64. Returns new coefficients (L, R, k) and singular values
    (L, k) such that column j of ``b left`` and of ``a right`` both have norm sqrt(s_j) and hold the
    j-th singular pair: to truncate, keep the first columns.

    With roots X^T X = left^T gram_b left and Y^T Y = right^T gram_a right the singular values are
    those of X Y^T = P S Q^T, and ``b left Y^T Q`` is already U S: no inverse of a root is needed,
    so linearly dependent columns do no harm. Values below sqrt(eps) times the largest are noise of
    the squared problem and come back as zero.
    """
    x, y = _root(left.mT @ gram_b @ left), _root(right.mT @ gram_a @ right)  # (L, k, k)
    p, s, qt = torch.linalg.svd(x @ y.mT)
    s = torch.where(s > torch.finfo(s.dtype).eps ** 0.5 * s[..., :1], s, 0.0)
    balance = torch.where(s > 0, s.rsqrt(), 0.0).unsqueeze(-2)  # (L, 1, k)
    return left @ (y.mT @ qt.mT * balance), right @ (x.mT @ p * balance), s


def _root(g: Tensor) -> Tensor:
    """X with X^T X = g for positive semidefinite g: (L, k, k)."""
    values, vectors = torch.linalg.eigh(g)
    return values.clamp(min=0.0).sqrt().unsqueeze(-1) * vectors.mT
