"""Singular value decompositions of factored matrices, and truncation to a rank or an energy.

``L`` modules, ``m`` rows, ``n`` columns, ``R`` columns of the stacked factors, ``k`` width of a
product.
"""

import torch
from torch import Tensor

# Singular vectors from the eigenvectors of x x^T carry eps times the square of this condition
# number: 2e-10. They cost half of what a singular value decomposition does.
_WELL_CONDITIONED = 1e3


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


def thin_svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return P, s and Q^T with ``x = P diag(s) Q^T``, s falling.

    x: (L, p, q) float64 -> (L, p, k), (L, k), (L, k, q) with k = min(p, q). By the eigenvectors of
    x x^T where x turns out to be well-conditioned, else by a singular value decomposition. The
    product is exact to eps on both routes.
    """
    if x.shape[-2] > x.shape[-1]:
        p, s, qt = thin_svd(x.mT)
        return qt.mT, s, p.mT
    vectors = torch.linalg.eigh(x @ x.mT)[1]
    p = vectors.flip(-1)
    rows = p.mT @ x  # (L, k, q)
    s = torch.linalg.vector_norm(rows, dim=-1)  # more exact than the roots of the eigenvalues
    falling = (s[..., 1:] <= s[..., :-1]).all(-1)  # (L,)
    sure = falling & (s[..., -1] > 0) & (_WELL_CONDITIONED * s[..., -1] >= s[..., 0])
    qt = rows / s.unsqueeze(-1)
    if not sure.all():
        p[~sure], s[~sure], qt[~sure] = torch.linalg.svd(x[~sure], full_matrices=False)
    return p, s, qt


def compress(
    left: Tensor, right: Tensor, gram_b: Tensor, gram_a: Tensor, *, rank: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the balanced singular form of ``b left right^T a^T``, found from Gram matrices alone.

    left, right: (L, R, k) coefficients of stacked factors b (L, m, R) and a (L, n, R); gram_b = b^T
    b and gram_a = a^T a: (L, R, R) float64. rank: of columns that are needed, all by default.
    Returns new coefficients (L, R, rank) and all singular values (L, k) such that column j of ``b
    left`` and of ``a right`` both have norm sqrt(s_j) and hold the j-th singular pair.

    With roots X^T X = left^T gram_b left and Y^T Y = right^T gram_a right the singular values are
    those of X Y^T = P S Q^T, and ``b left Y^T Q`` is already U S: no inverse of a root is needed,
    so linearly dependent columns do no harm. Values below sqrt(eps) times the largest are noise of
    the squared problem and come back as zero.
    """
    x, y = _root(left.mT @ gram_b @ left), _root(right.mT @ gram_a @ right)  # (L, k, k)
    p, s, qt = thin_svd(x @ y.mT)
    s = torch.where(s > torch.finfo(s.dtype).eps ** 0.5 * s[..., :1], s, 0.0)
    balance = torch.where(s > 0, s.rsqrt(), 0.0).unsqueeze(-2)[..., :rank]  # (L, 1, rank)
    q, p = qt.mT[..., :rank], p[..., :rank]  # (L, k, rank)
    return left @ (y.mT @ q * balance), right @ (x.mT @ p * balance), s


def _root(g: Tensor) -> Tensor:
    """X with X^T X = g for positive semidefinite g: (L, k, k). Cholesky's, unless g is singular."""
    lower, info = torch.linalg.cholesky_ex(g)
    singular = info > 0  # (L,)
    if singular.any():
        values, vectors = torch.linalg.eigh(g[singular])
        lower[singular] = vectors * values.clamp(min=0.0).sqrt().unsqueeze(-2)
    return lower.mT
