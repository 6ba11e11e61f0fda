"""The deltas themselves, in blocks of rows: what the element-wise methods were written for.

The result has full rank. It is never held: a randomized subspace iteration (Halko, Martinsson and Tropp, SIAM Review
53, 2011, algorithm 4.4) passes over its blocks a few times and keeps the leading singular pairs; the energy that is
lost is in the report. With as many columns as the module has, nothing is.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor

from gam_merge._bucket import Bucket, Merged
from gam_merge._methods._entries import Blocks, Part, View, generator
from gam_merge._methods._rule import space
from gam_merge._methods._schema import Range

_BLOCK = 1 << 20  # entries of all adapters at a time: 8 MiB in float64
_HELD = 1 << 21  # entries of a result that is small enough to be kept between passes
_OVERSAMPLING, _POWERS = 16, 2


@space(
    "delta",
    summary="the deltas themselves, in blocks of rows; the full-rank result is compressed",
    reference="the element-wise methods as published",
    rank="sum",
    takes="bucket",
    gives="merged",
    single=True,
)
def delta(
    bucket: Bucket,
    weights: Tensor,
    *,
    columns: Annotated[int, Range(0), "rank that the result is compressed to; 0: the sum of ranks"] = 0,
) -> View:
    factors = [(x.b64[0] @ x.u[0] @ x.core[0], x.a64[0] @ x.v[0]) for x in bucket.deltas]  # (m, k_i), (n, k_i)
    m, n = bucket.shape
    rows = max(1, _BLOCK // (n * len(factors)))
    columns = min(columns or sum(bucket.ranks), m, n)

    def blocks() -> Iterator[Tensor]:
        for start in range(0, m, rows):
            yield torch.stack([b[start : start + rows] @ a.mT for b, a in factors]).unsqueeze(0)

    def lift(merged: Sequence[Blocks]) -> Merged:
        return _compress(merged[0], (m, n), columns, generator(0, *bucket.matrices))

    return View([Part("delta", blocks, m * n, whole=rows >= m)], lift)


def _compress(blocks: Blocks, shape: tuple[int, int], columns: int, random: torch.Generator) -> Merged:
    """The leading singular pairs of a matrix of that shape that comes in blocks (1, p, n) of rows."""
    m, n = shape
    if m * n <= _HELD:
        held = list(blocks())
        blocks = held.__iter__
    width = min(columns + _OVERSAMPLING, m, n)
    start = torch.randn(n, width, generator=random, dtype=torch.float64)
    q = _right(blocks, start.to(next(blocks()).device))
    for _ in range(_POWERS):
        z, _ = _left(blocks, q)
        q = _right(blocks, torch.linalg.qr(z)[0])
    z, energy = _left(blocks, q)  # (n, width): x is q z^T, up to what is lost
    a, t = torch.linalg.qr(z)  # (n, width), (width, width)
    left, s, right = torch.linalg.svd(t.mT)
    left, s, right = left[:, :columns], s[:columns], right[:columns]
    root = s.sqrt()
    kept = (s.square().sum() / energy).clamp(max=1.0) if energy > 0 else torch.ones_like(energy)
    return Merged((left * root)[None], (right.mT * root)[None], s=s[None], b=q[None], a=a[None], kept=kept[None])


def _right(blocks: Blocks, x: Tensor) -> Tensor:
    """An orthonormal basis of the range of merged @ x: (n, width) -> (m, width)."""
    return torch.linalg.qr(torch.cat([block[0] @ x for block in blocks()]))[0]


def _left(blocks: Blocks, q: Tensor) -> tuple[Tensor, Tensor]:
    """merged^T q, (m, width) -> (n, width), and |merged|^2."""
    out, energy, start = None, q.new_zeros(()), 0
    for (block,) in blocks():
        part = block.mT @ q[start : start + len(block)]
        out = part if out is None else out.add_(part)
        energy += block.square().sum()
        start += len(block)
    assert out is not None
    return out, energy
