"""STAR (arXiv 2502.10339): the mean of the deltas, each cut to the leading part of its spectrum.

The nuclear norm of each is restored after the cut.

keep the fewest singular values of delta_i whose sum reaches ``eta`` of the whole, times whole /
kept
"""

from typing import Annotated

import torch
from torch import Tensor

from gam_merge._deltas.core import Core, InCore
from gam_merge._methods._rule import rule
from gam_merge._methods._schema import Range


@rule(
    "core",
    "star",
    summary="cut each delta to its leading singular values, restore its nuclear norm, then average",
    reference="arXiv 2502.10339 (NAACL 2025)",
    use="where small singular values are noise",
    avoid="at small ranks, where each direction counts",
    breaks={
        "identity": "the spectrum of a single adapter is cut too",
        "equal": "as for a single adapter",
    },
)
def star(
    core: Core,
    weights: Tensor,
    *,
    eta: Annotated[float, Range(0, 1), "share of the sum of singular values that is kept"] = 0.4,
) -> InCore:
    x = torch.zeros_like(core.m[:, 0])
    for i, (p, s, q) in enumerate(core.svds):  # (L, K, k), (L, k), (L, J, k)
        whole = s.sum(-1, keepdim=True)
        counts = s.cumsum(-1) - s < eta * whole  # those that start below the share
        counts[:, 0] = True
        kept = s * counts
        restored = kept * whole / kept.sum(-1, keepdim=True)  # (L, k)
        x += weights[:, i, None, None] * (p * restored.unsqueeze(-2)) @ q.mT
    return InCore(x)
