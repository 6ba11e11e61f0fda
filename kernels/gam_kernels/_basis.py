"""Orthonormal bases of stacks of tall matrices, formed only where that is needed.

``L`` modules, ``m`` rows, ``r`` columns.

An orthonormal basis of the columns of ``x`` is kept as a product ``factor @ coef`` with a small
``coef``. Three routes, chosen for each module by what its Gram matrix says of its conditioning:

narrow       factor = x, coef = the inverse Cholesky factor; products with x may be formed in the
caller's dtype wide         the same, but rounding x @ coef in that dtype would cost too many
digits, or leave its range: products
             stay in float64
Householder  factor = Q of a QR, coef = the left singular vectors of R: always right, and reveals
the rank

Sources: CholeskyQR and its loss of orthogonality with the square of the condition number, Yamamoto,
Nakatsukasa, Yanagisawa and Fukaya, ETNA 44 (2015); diagonal scaling is optimal up to sqrt(r), van
der Sluis, Numer. Math. 14 (1969).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# The amplification of rounding up to which products x @ coef are formed in the dtype of x, in units
# of 1 / eps: 16 in float32, so that a basis carries at most 2e-6 of relative error.
_NARROW = 2e-6
# The squared lengths of columns whose products with others stay well within float32.
_SMALL, _LARGE = 1e-24, 1e24
_CACHED = 1 << 20  # bytes of float64 that a core's own cache holds
_STRIP = 64  # rows of a Gram matrix that are formed at once; fewer would make products slow
_EPS64 = torch.finfo(torch.float64).eps


class Basis(NamedTuple):
    """Orthonormal bases ``q = factor @ coef`` of the columns of a stack ``x = q @ core``.

    Columns of ``coef`` and rows of ``core`` at and beyond a module's ``rank`` are zero where the QR
    revealed it.
    """

    factor: Tensor  # (L, m, r) float64, or x itself where no basis had to be formed
    coef: Tensor  # (L, r, r) float64
    core: Tensor  # (L, r, r) float64
    rank: Tensor  # (L,) int64, numerical rank
    wide: Tensor  # (L,) bool, products with factor must be formed in float64
    revealed: Tensor  # (L,) bool, the rank was decided by a singular value decomposition


def gram(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products ``x^T y`` of the columns of two stacks, accumulated in float64.

    x: (L, m, r), y: (L, m, s), any float dtype -> (L, r, s) float64. Non-finite input gives
    non-finite output. On the CPU, what is not float64 is converted a few rows at a time, and
    nothing of full size is made.
    """
    if x.dtype == y.dtype == torch.float64 or x.device.type != "cpu":
        return x.double().mT @ y.double()
    out = torch.zeros(len(x), x.shape[-1], y.shape[-1], dtype=torch.float64)
    rows = _rows(len(x) * x.shape[-1])
    for left, right in zip(x.split(rows, -2), y.split(rows, -2), strict=True):
        out.baddbmm_(left.double().mT, right.double())
    return out


def stacked_gram(pieces: Sequence[Tensor]) -> Tensor:
    """Return the Gram matrix of stacks side by side, [x_1 ... x_N], as ``gram`` forms it.

    pieces: (L, m, r_i) each, of one dtype -> (L, R, R) float64, R the sum of the r_i. One wide
    product runs several times as fast as narrow ones. On the CPU only the upper triangle is formed,
    in strips of rows, and mirrored.
    """
    columns = sum(x.shape[-1] for x in pieces)
    if pieces[0].device.type != "cpu":
        x = torch.cat(list(pieces), -1).double()
        return x.mT @ x
    out = torch.zeros(len(pieces[0]), columns, columns, dtype=torch.float64)
    rows = _rows(len(out) * columns)
    starts = range(0, columns, _STRIP)
    for parts in zip(*(x.split(rows, -2) for x in pieces), strict=True):
        x = _side_by_side(parts)  # (L, p, R)
        for i in starts:
            out[:, i : i + _STRIP, i:].baddbmm_(x[..., i : i + _STRIP].mT, x[..., i:])
    for i in starts[1:]:
        out[:, i:, i - _STRIP : i] = out[:, i - _STRIP : i, i:].mT
    return out


def orthonormalize(x: Tensor, *, eps: float, g: Tensor | None = None) -> Basis:
    """Return orthonormal bases of the columns of each matrix of a stack.

    x: (L, m, r) float32 or float64, m < r allowed. eps: of the dtype in which products with ``x``
    are to be formed; that of float64 itself sends every module down the Householder route. g: (L,
    r, r) float64, the Gram matrices of ``x``, if known.

    A module with NaN or Inf keeps a non-finite ``core``: the caller, who knows its name, reports
    it.
    """
    g = stacked_gram([x]) if g is None else g  # (L, r, r)
    coef, core, amplification = _cholesky(g)
    safe = amplification.square() * _EPS64 <= eps / 8  # NaN compares false
    slow = g.isfinite().flatten(1).all(-1) & ~safe  # (L,)
    rank = torch.full(x.shape[:1], x.shape[-1], device=x.device)
    squares = g.diagonal(dim1=-2, dim2=-1)
    extreme = (squares.amin(-1) < _SMALL) | (squares.amax(-1) > _LARGE)
    wide = slow | extreme | ~(amplification * eps <= _NARROW)
    if slow.any():
        x = x.to(torch.float64, copy=True)
        x[slow], coef[slow], core[slow], rank[slow] = _householder(x[slow])
    return Basis(x, coef, core, rank, wide, slow)


def _rows(width: int) -> int:
    """How many rows of ``width`` numbers are worked on at a time: a cache full, but not too few."""
    return max(256, _CACHED // (8 * width))


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """[x_1 ... x_N] in float64, copied along memory if they are transposed: (L, p, R)."""
    if parts[0].stride(-1) > 1:
        return torch.cat([x.mT for x in parts], -2).double().mT
    return torch.cat(list(parts), -1).double()


def _cholesky(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse Cholesky factors, Cholesky factors and amplification of rounding, from Gram matrices.

    g: (L, r, r) float64 -> coef (L, r, r), core (L, r, r), amplification (L,), with ``g = core^T
    core`` and ``coef = core^-1``. The amplification is |R^-1|_F / sqrt(r) for unit columns: 1 if x
    is orthonormal, infinite or NaN if the factorisation fails.
    """
    scale = g.diagonal(dim1=-2, dim2=-1).sqrt()  # (L, r), column norms of x
    # 0 / 0 = NaN for a zero column, caught below.
    unit = g / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    lower, info = torch.linalg.cholesky_ex(torch.where(unit.isfinite(), unit, 0.0))
    eye = torch.eye(g.shape[-1], dtype=g.dtype, device=g.device).expand_as(g)
    inverse = torch.linalg.solve_triangular(lower.mT, eye, upper=True)
    done = (info == 0) & unit.isfinite().all(-1).all(-1)  # (L,)
    amplification = torch.linalg.matrix_norm(inverse) / g.shape[-1] ** 0.5
    amplification = torch.where(done, amplification, torch.inf)
    return inverse / scale.unsqueeze(-1), lower.mT * scale.unsqueeze(-2), amplification


def _householder(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Explicit bases and numerical ranks by QR and the SVD of R.

    x: (L, m, r) float64 -> factor (L, m, r), coef (L, r, r), core (L, r, r), rank (L,). Singular
    values of x with unit columns up to eps * max(m, r) * the largest count as zero: how long a
    column is says nothing, since the other factor of a delta may undo it.
    """
    m, r = x.shape[-2:]
    length = torch.linalg.vector_norm(x, dim=-2, keepdim=True)  # (L, 1, r)
    unit = x / torch.where(length > 0, length, 1.0)
    q, upper = torch.linalg.qr(unit)  # (L, m, min(m, r)), (L, min(m, r), r)
    left, s, vt = torch.linalg.svd(upper, full_matrices=False)
    rank = (s > _EPS64 * max(m, r) * s[..., :1]).sum(-1)
    kept = torch.arange(s.shape[-1], device=x.device) < rank.unsqueeze(-1)  # (L, min(m, r))
    factor, coef, core = x.new_zeros(x.shape), x.new_zeros(len(x), r, r), x.new_zeros(len(x), r, r)
    k = s.shape[-1]
    factor[..., :k] = q
    coef[..., :k, :k] = left * kept.unsqueeze(-2)
    core[..., :k, :] = (kept * s).unsqueeze(-1) * vt * length
    return factor, coef, core, rank
