"""The factors of adapters as they were read, for methods that look at each on its own.

Tensor legend: ``N`` adapters, ``L`` modules, ``m`` out, ``n`` in, ``r`` rank.
"""

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._deltas.bucket import Bucket, Factors


def balanced(x: Factors) -> tuple[Tensor, Tensor]:
    """Return B (L, m, r) and A^T (L, n, r) in float64, with half of the scale each."""
    root = x.scale.sqrt()[:, None, None]
    return x.b.double() * root, x.a.double() * root


def stacked(bucket: Bucket, adder: str) -> tuple[Tensor, Tensor]:
    """Return B (L, N, m, r) and A (L, N, r, n) of all adapters, with half of the scale each.

    adder: the method, for the error. Raises GamMergeError for adapters of different ranks.
    """
    ranks = tuple(x.b.shape[-1] for x in bucket.factors)
    if len(set(ranks)) > 1:
        raise GamMergeError(
            f"module {bucket.names[0]} has ranks {ranks}; "
            f"{adder} adds factors and needs equal ranks: use @core"
        )
    bs, ats = zip(*map(balanced, bucket.factors), strict=True)
    return torch.stack(bs, 1), torch.stack(ats, 1).mT


def root(w: Tensor) -> Tensor:
    """Return how a weight enters B: its root."""
    return w.abs().sqrt()


def signed_root(w: Tensor) -> Tensor:
    """Return how a weight enters A: its root with its sign, so that both give the weight."""
    return w.sign() * w.abs().sqrt()
