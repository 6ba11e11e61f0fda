"""Pico (arXiv 2604.16826): damp crowded output directions, where the B of many adapters point.

    S = (I + l sum B_i B_i^T)^-1,    l = (N - 1) / sum |B_i|^2
    delta_i <- S delta_i,    then any rule,    then the mean norm of the deltas is restored

What it does depends on how a delta is split between B and A: ``factors=fixed`` takes A orthonormal,
so that B_i B_i^T = delta_i delta_i^T, ``factors=read`` takes B as it is in the file.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor

from gam_merge._deltas.core import Core, InCore
from gam_merge._methods._rule import CoreRule, plugin


@plugin(
    "pre",
    "pico",
    summary="damp output directions that many adapters crowd into, and restore the mean norm "
    "afterwards",
    reference="arXiv 2604.16826",
    use="before sums of specialists with a shared initialisation",
    avoid="for adapters of one goal: it damps what they share",
    breaks={"equal": "what equal deltas share is damped, strong directions most"},
    reads_factors=True,
)
def pico(
    core: Core,
    weights: Tensor,
    rule: CoreRule,
    *,
    factors: Annotated[
        Literal["fixed", "read"], "B of a delta with orthonormal A, or B as it was read"
    ] = "fixed",
) -> InCore:
    bs = [left @ c for left, c in zip(core.lefts, core.cores, strict=True)]  # (L, K, k_i)
    if factors == "read":
        bs = core.read_lefts()  # (L, K, r_i)
    stack = torch.cat(bs, -1)  # (L, K, R)
    crowd = stack @ stack.mT  # (L, K, K)
    total = crowd.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    eye = torch.eye(crowd.shape[-1]).to(crowd)
    damping = torch.linalg.inv(eye + (len(bs) - 1) / total * crowd)  # (L, K, K)
    merged = rule(core.mapped(damping), weights)
    shares = weights.abs() / weights.abs().sum(-1, keepdim=True)
    length = torch.linalg.matrix_norm(merged.x)
    gain = torch.where(length > 0, (shares * core.norms).sum(-1) / length, 1.0)
    return merged._replace(x=merged.x * gain[:, None, None])
