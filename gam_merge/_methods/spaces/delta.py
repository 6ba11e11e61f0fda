"""The deltas themselves, in blocks of rows: what the element-wise methods were written for.

The result has full rank. It is never held: a randomized subspace iteration passes over its blocks a
few times and keeps the leading singular pairs; the report says what energy was lost. With as many
columns as the module has, none is.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor

from gam_kernels import Delta, leading_svd
from gam_merge._common.random import generator
from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._methods._entries import Blocks, Part, View
from gam_merge._methods._rule import space
from gam_merge._methods._schema import Range

_HELD = 1 << 21  # entries of a result that is small enough to be kept between passes


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
    columns: Annotated[
        int, Range(0), "rank that the result is compressed to; 0: the sum of ranks"
    ] = 0,
) -> View:
    narrow = bucket.deltas[0].b.dtype
    factors = [_factors(x, narrow) for x in bucket.deltas]
    columns = min(columns or sum(bucket.ranks), *bucket.shape)

    def rows(block: slice) -> Tensor:
        return torch.stack([b[block] @ a.mT for b, a in factors]).unsqueeze(0)

    def lift(merged: Sequence[Blocks]) -> Merged:
        return _compress(merged[0], bucket.shape, columns, generator(0, *bucket.matrices))

    return View([Part.in_blocks("delta", bucket.shape, len(factors), rows)], lift)


def _factors(x: Delta, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The delta of the only module as a product b a^T: (m, k), (n, k)."""
    return (x.b64[0] @ x.u[0] @ x.core[0]).to(dtype), (x.a64[0] @ x.v[0]).to(dtype)


def _compress(
    blocks: Blocks, shape: tuple[int, int], columns: int, random: torch.Generator
) -> Merged:
    """The leading singular pairs of a matrix that comes in blocks (1, p, n) of rows."""

    def rows() -> Iterator[Tensor]:
        return (block[0] for block in blocks())

    passes: Callable[[], Iterable[Tensor]] = rows
    if shape[0] * shape[1] <= _HELD:
        passes = list(rows()).__iter__
    u, s, v, energy = leading_svd(passes, shape, columns, generator=random)
    root = s.sqrt().diag()[None]  # (1, k, k)
    kept = (s.square().sum() / energy).clamp(max=1.0) if energy > 0 else torch.ones_like(energy)
    return Merged(root, root, s=s[None], b=u[None], a=v[None], kept=kept[None])
