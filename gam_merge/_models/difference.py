"""The difference of two weights, and the product of low rank that comes closest to it.

Tensor legend: ``m`` out, ``n`` in, ``k`` rank.
"""

from collections.abc import Iterator
from math import hypot, isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from gam_kernels import leading_svd
from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import FileTensor, blocks

_BLOCK = 1 << 19  # entries of a difference that are worked on at a time
_FIRST_RANK = 32  # of those tried for a share of energy; then twice that, and so on
_SLACK = 1e-6  # what products in float32 may add to a share of energy or take from it


class Factored(NamedTuple):
    """About the difference: ``b`` (m, k) times ``a`` (k, n), and how far from it."""

    b: Tensor
    a: Tensor
    norm: float  # |difference|
    residual: float  # |difference - b a| / |difference|


def distance(tuned: FileTensor, base: FileTensor) -> float:
    """|tuned - base|, piece by piece."""
    return hypot(*(_norm(piece) for _, piece in _pieces(tuned, base)))


def difference(tuned: FileTensor, base: FileTensor, *, transposed: bool) -> Tensor:
    """tuned - base as (m, n), in float32 unless they are in float64; ``transposed``: they are kept as (n, m)."""
    dtype = torch.promote_types(torch.promote_types(tuned.dtype, base.dtype), torch.float32)
    out = torch.empty(tuned.shape, dtype=dtype)
    for part, piece in _pieces(tuned, base):
        out.view(-1)[part] = piece
    return out.mT if transposed else out


def _pieces(tuned: FileTensor, base: FileTensor) -> Iterator[tuple[slice, Tensor]]:
    for (part, x), (_, y) in zip(blocks(tuned, _BLOCK), blocks(base, _BLOCK), strict=True):
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        piece = x.to(dtype) - y.to(dtype)
        if not isfinite(_norm(piece)):
            where = tuned if not x.isfinite().all() else base
            raise GamMergeError(
                f"{where.path}: {where.key} has NaN or Inf; nothing can be extracted from it"
            )
        yield part, piece


def factorize(
    x: Tensor, *, rank: int, energy: float | None, dtype: torch.dtype, random: torch.Generator
) -> Factored | None:
    """The factors of x (m, n), with the norm of the difference shared between them; None if x is zero.

    rank: of the result, or with ``energy`` the largest that is tried to keep that share of |x|^2.
    """
    (m, n), rows = x.shape, max(1, _BLOCK // x.shape[1])
    largest = min(rank, m, n)
    width = largest if energy is None else min(_FIRST_RANK, largest)
    while True:
        u, s, v, total = leading_svd(
            lambda: x.split(rows), (m, n), width, generator=random, oversampling=width + 16
        )
        if total == 0:
            return None
        missing = 1 - s.square().cumsum(0) / total  # (k,) share of energy if cut after each
        k = width if energy is None else int((missing > 1 - energy + _SLACK).sum()) + 1
        if k <= width or width == largest:
            break
        width = min(2 * width, largest)
    k = min(k, width)
    root = s[:k].sqrt().to(x.dtype)
    b, a = (
        (u[:, :k] * root).to(dtype),
        (v[:, :k] * root).mT.contiguous().to(dtype),
    )  # (m, k), (k, n)
    if not (b.isfinite().all() and a.isfinite().all()):
        raise GamMergeError(
            f"a factor does not fit into {str(dtype).removeprefix('torch.')}; write bfloat16 or float32"
        )
    error = _error(x, b.to(x.dtype), a.to(x.dtype), rows)
    return Factored(b, a, float(total.sqrt()), error / float(total.sqrt()))


def _error(x: Tensor, b: Tensor, a: Tensor, rows: int) -> float:
    """|x - b a|, block by block."""
    pairs = zip(x.split(rows), b.split(rows), strict=True)
    return hypot(*(_norm(torch.addmm(block, left, a, alpha=-1)) for block, left in pairs))


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))
