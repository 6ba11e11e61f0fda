"""RobustMerge (arXiv 2502.17159): prune both factors, and make up in B for what A has lost.

    A'_i, B'_i = the largest entries of A_i and of B_i
    s_i = per rank, sum |A_i| / sum |A'_i|, no less than its upper quantile over the ranks
    A = sum gain w_i^(1/2) A'_i,    B = sum gain w_i^(1/2) B'_i diag(s_i) / sum s_i,    merged = B A

Signs of weights go to A. Like all sums of factors it has cross terms B_i A_j.
"""

from typing import Annotated

import torch
from torch import Tensor

from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._deltas.core import weighted_sum
from gam_merge._methods._entries import Density
from gam_merge._methods._factors import root, signed_root, stacked
from gam_merge._methods._rule import rule
from gam_merge._methods._schema import Range


@rule(
    "bucket",
    "robustmerge",
    summary="prune both factors, rescale what is left per rank, then add each on its own",
    reference="arXiv 2502.17159 (NeurIPS 2025)",
    use="as a baseline of rank r for adapters that started from one A",
    avoid="otherwise: it adds the cross terms of different adapters",
    rank="largest",
    normalize=False,
    composes=False,
    reads_factors=True,
    breaks={
        "identity": "small entries of a single adapter are dropped, and the rest grows by the gain",
        "equal": "as for a single adapter, times N",
        "gauge": "other factors of the same delta give another result",
        "mixed ranks": "factors of different ranks cannot be added",
        "deficient": "columns that cancel out in the product count too",
    },
)
def robustmerge(
    bucket: Bucket,
    weights: Tensor,
    *,
    density: Density = 0.2,
    quantile: Annotated[
        float, Range(0, 1), "ranks with a lower scale than this share of them get its scale"
    ] = 0.8,
    gain: Annotated[float, Range(0), "factor of each of B and A"] = 2.0,
) -> Merged:
    b, a = stacked(bucket, "robustmerge")  # (L, N, m, r), (L, N, r, n)
    pruned_b, pruned_a = _largest(b, density), _largest(a, density)
    scale = _at_least(_ratio(a, pruned_a), quantile)  # (L, N, r)
    total = scale.sum(1, keepdim=True)
    shares = scale / torch.where(total > 0, total, 1.0)
    merged_b = gain * weighted_sum(root(weights), pruned_b * shares.unsqueeze(-2))  # (L, m, r)
    merged_a = gain * weighted_sum(signed_root(weights), pruned_a)  # (L, r, n)
    eye = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device).expand(len(b), -1, -1)
    return Merged(eye, eye, b=merged_b, a=merged_a.mT)


def _largest(x: Tensor, density: float) -> Tensor:
    """The entries of each matrix above the given share of the smallest, and the one at it."""
    size = x.abs()
    count = max(1, int(size[0, 0].numel() * (1 - density)))
    least = size.flatten(2).kthvalue(count, -1).values
    return x * (size >= least[..., None, None])


def _ratio(a: Tensor, pruned: Tensor) -> Tensor:
    """Sum |a| / sum |pruned| of each row, 0 where nothing is left: (L, N, r)."""
    left = pruned.abs().sum(-1)
    return torch.where(left > 0, a.abs().sum(-1) / left, 0.0)


def _at_least(scale: Tensor, quantile: float) -> Tensor:
    """Raise the scales of an adapter to the one at a share of its ranks: (L, N, r)."""
    position = min(int(scale.shape[-1] * quantile), scale.shape[-1] - 1)
    floor = scale.sort(-1).values[..., position]
    return torch.maximum(scale, floor.unsqueeze(-1))
