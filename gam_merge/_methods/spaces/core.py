"""Core space (arXiv 2509.17786) in bases that depend on the deltas alone.

The paper takes singular bases of the stacked factors [B_1 ... B_N] and [A_1; ...; A_N], which
change when a factor is split differently between B and A. Here the left basis is that of the deltas
side by side, the right one that of the deltas on top of each other: functions of the deltas alone,
in a fixed order and with fixed signs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gam_merge._deltas.core import Core, InCore
from gam_merge._methods._entries import Blocks, Part, View
from gam_merge._methods._rule import space


@space(
    "core",
    summary="the deltas in singular bases of all of them together: R x R matrices",
    reference="arXiv 2509.17786 (NeurIPS 2025), with bases of the deltas in place of the factors",
    rank="sum",
)
def core_space(core: Core, weights: Tensor) -> View:
    p = torch.linalg.svd(torch.cat(core.m.unbind(1), -1), full_matrices=False)[0]  # (L, K, K)
    q = torch.linalg.svd(torch.cat(core.m.unbind(1), -2), full_matrices=False)[2].mT  # (L, J, J)
    p, q = core.orient(p, q)

    def lift(merged: Sequence[Blocks]) -> InCore:
        (x,) = merged[0]()
        return InCore(p @ x @ q.mT)

    return View([Part.of("core", p.unsqueeze(1).mT @ core.m @ q.unsqueeze(1))], lift)
