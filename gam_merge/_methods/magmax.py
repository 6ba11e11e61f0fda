"""MagMax (arXiv 2407.06322): of the entries at one place, the largest wins.

merged = w_i x_i where |w_i x_i| is the largest; the positive one of two that are equally large
"""

import torch
from torch import Tensor

from gam_merge._methods._entries import Entries
from gam_merge._methods._rule import rule


@rule(
    "entries",
    "magmax",
    summary="take the largest entry of all adapters at each place",
    reference="arXiv 2407.06322 (ECCV 2024); its code scales the result by 0.5",
    use="as a control for `ties`: a choice by size instead of an election of signs",
    avoid="otherwise",
    normalize=False,
)
def magmax(entries: Entries, weights: Tensor) -> Tensor:
    x = weights[..., None, None] * entries.x  # (L, N, p, q)
    highest, lowest = x.amax(1), x.amin(1)  # (L, p, q)
    return torch.where(highest >= -lowest, highest, lowest)
