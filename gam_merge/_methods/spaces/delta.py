"""The deltas themselves, in blocks of rows: what the element-wise methods were written for.

The result has full rank. It is never held: a randomized subspace iteration passes over its blocks a few times and keeps
the leading singular pairs; the energy that is lost is in the report. With as many columns as the module has, none is.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor

from gam_kernels import leading_svd
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
    factors = [
        ((x.b64[0] @ x.u[0] @ x.core[0]).to(narrow), (x.a64[0] @ x.v[0]).to(narrow))
        for x in bucket.deltas
    ]
    columns = min(columns or sum(bucket.ranks), *bucket.shape)

    def rows(some: slice) -> Tensor:
        return torch.stack([b[some] @ a.mT for b, a in factors]).unsqueeze(0)

    def lift(merged: Sequence[Blocks]) -> Merged:
        return _compress(merged[0], bucket.shape, columns, generator(0, *bucket.matrices))

    return View([Part.in_blocks("delta", bucket.shape, len(factors), rows)], lift)


def _compress(
    blocks: Blocks, shape: tuple[int, int], columns: int, random: torch.Generator
) -> Merged:
    """The leading singular pairs of a matrix of that shape that comes in blocks (1, p, n) of rows."""
    rows: Callable[[], Iterator[Tensor]] = lambda: (block[0] for block in blocks())  # noqa: E731
    if shape[0] * shape[1] <= _HELD:
        rows = list(rows()).__iter__
    u, s, v, energy = leading_svd(rows, shape, columns, generator=random)
    root = s.sqrt().diag()[None]  # (1, k, k)
    kept = (s.square().sum() / energy).clamp(max=1.0) if energy > 0 else torch.ones_like(energy)
    return Merged(root, root, s=s[None], b=u[None], a=v[None], kept=kept[None])
