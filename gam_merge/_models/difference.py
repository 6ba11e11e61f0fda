"""The difference of two weights, and the product of low rank that comes closest to it.

Tensor legend: ``m`` out, ``n`` in, ``k`` rank.
"""

from collections.abc import Iterator
from math import hypot, isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from gam_kernels import Leading, leading_svd, rank_for_energy
from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import FileTensor, blocks, dtype_name

_BLOCK = 1 << 19  # entries of a difference that are worked on at a time
_FIRST_RANK = 32  # the first that is tried for a share of energy; then twice that, and so on
_SLACK = 1e-6  # what products in float32 may add to a share of energy or take from it


class Factored(NamedTuple):
    """A difference approximated by ``b`` (m, k) times ``a`` (k, n)."""

    b: Tensor
    a: Tensor
    norm: float  # |difference|
    residual: float  # |difference - b a| / |difference|


def distance(tuned: FileTensor, base: FileTensor) -> float:
    """Return |tuned - base|, piece by piece."""
    return hypot(*(_norm(piece) for _, piece in _pieces(tuned, base)))


def difference(tuned: FileTensor, base: FileTensor, *, transposed: bool) -> Tensor:
    """Return tuned - base as (m, n), in float32 unless one is in float64.

    transposed: the weights are kept as (n, m).
    """
    out = torch.empty(tuned.shape, dtype=_wide(tuned.dtype, base.dtype))
    for part, piece in _pieces(tuned, base):
        out.view(-1)[part] = piece
    return out.mT if transposed else out


def _pieces(tuned: FileTensor, base: FileTensor) -> Iterator[tuple[slice, Tensor]]:
    for (part, x), (_, y) in zip(blocks(tuned, _BLOCK), blocks(base, _BLOCK), strict=True):
        dtype = _wide(x.dtype, y.dtype)
        piece = x.to(dtype) - y.to(dtype)
        if not isfinite(_norm(piece)):
            broken = base if x.isfinite().all() else tuned
            raise GamMergeError(
                f"{broken.path}: {broken.key} has NaN or Inf; nothing can be extracted from it"
            )
        yield part, piece


def _wide(x: torch.dtype, y: torch.dtype) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x, y), torch.float32)


def factorize(
    x: Tensor, *, rank: int, energy: float | None, dtype: torch.dtype, random: torch.Generator
) -> Factored | None:
    """Factorize x (m, n), its singular values shared equally between the factors.

    rank: of the result; with ``energy`` the largest that is tried to keep that share of |x|^2.
    Returns None if x is zero.
    """
    largest = min(rank, *x.shape)
    if energy is None:
        k, (u, s, v, total) = largest, _leading(x, largest, random)
    else:
        k, (u, s, v, total) = _leading_for_energy(x, largest, energy, random)
    if total == 0:
        return None
    root = s[:k].sqrt().to(x.dtype)
    b = (u[:, :k] * root).to(dtype)  # (m, k)
    a = (v[:, :k] * root).mT.contiguous().to(dtype)  # (k, n)
    if not (b.isfinite().all() and a.isfinite().all()):
        raise GamMergeError(
            f"a factor does not fit into {dtype_name(dtype)}; write bfloat16 or float32"
        )
    norm = float(total.sqrt())
    return Factored(b, a, norm, _error(x, b.to(x.dtype), a.to(x.dtype)) / norm)


def _leading_for_energy(
    x: Tensor, largest: int, energy: float, random: torch.Generator
) -> tuple[int, Leading]:
    """Find how many triplets hold a share of the energy, at most ``largest``, and the triplets."""
    width = min(_FIRST_RANK, largest)
    while True:
        leading = _leading(x, width, random)
        k = int(rank_for_energy(leading.s, energy - _SLACK, total=leading.energy))
        if k <= width or width == largest:
            return min(k, width), leading
        width = min(2 * width, largest)


def _leading(x: Tensor, rank: int, random: torch.Generator) -> Leading:
    """Find the first ``rank`` singular triplets of x."""
    m, n = x.shape
    rows = _rows_per_block(x)
    return leading_svd(
        lambda: x.split(rows), (m, n), rank, generator=random, oversampling=rank + 16
    )


def _error(x: Tensor, b: Tensor, a: Tensor) -> float:
    """Return |x - b a|, block by block."""
    rows = _rows_per_block(x)
    pairs = zip(x.split(rows), b.split(rows), strict=True)
    return hypot(*(_norm(torch.addmm(block, left, a, alpha=-1)) for block, left in pairs))


def _rows_per_block(x: Tensor) -> int:
    return max(1, _BLOCK // x.shape[1])


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))
