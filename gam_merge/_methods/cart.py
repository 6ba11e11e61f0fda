"""CART: the mean, plus the leading part of what sets each adapter apart from it.

    merged = mean + c * sum N w_i SVD_k(delta_i - mean)

As ported to core space (arXiv 2509.17786), k a share of the dimensions that the deltas span
together.
"""

import math
from typing import Annotated

import torch
from torch import Tensor

from gam_merge._deltas.core import Core, InCore, weighted_sum
from gam_merge._methods._rule import rule
from gam_merge._methods._schema import Range


@rule(
    "core",
    "cart",
    summary="the mean plus the leading singular part of each adapter's difference from it",
    reference="CART as ported by arXiv 2509.17786",
    use="where the mean is good and each adapter should keep more of what is its own",
    avoid="without tuning: `c` and `fraction` decide everything",
)
def cart(
    core: Core,
    weights: Tensor,
    *,
    fraction: Annotated[
        float, Range(0, 1), "share of the dimensions that each difference keeps, rounded up"
    ] = 0.04,
    c: Annotated[float, Range(0), "factor of the differences"] = 0.1,
) -> InCore:
    mean = weighted_sum(weights, core.m)  # (L, K, J)
    k = math.ceil(fraction * min(mean.shape[-2:]))
    p, s, qt = torch.linalg.svd(core.m - mean.unsqueeze(1), full_matrices=False)
    apart = (p[..., :k] * s[..., None, :k]) @ qt[..., :k, :]  # (L, N, K, J)
    return InCore(mean + c * weights.shape[-1] * weighted_sum(weights, apart))
