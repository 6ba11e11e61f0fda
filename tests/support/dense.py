"""Oracles: the methods as their papers write them, on dense float64 matrices, one module at a time.

Nothing here is shared with the library. ``deltas`` are (m, n) with the scale folded in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def numerical_rank(delta: Tensor) -> int:
    s = torch.linalg.svdvals(delta)
    return int((s > 1e-10 * s[0]).sum()) if s[0] > 0 else 0


def gam(deltas: Sequence[Tensor], weights: Sequence[float], anchor: int = 0) -> Tensor:
    """Equations 1 to 5 of arXiv 2606.00357, with weights in all three means."""
    bases = []
    for delta in deltas:
        r = numerical_rank(delta)
        u, s, vt = torch.linalg.svd(delta)  # equation 1
        bases.append((u[:, :r], s[:r].diag(), vt[:r].T))
    ranks = [s.shape[0] for _, s, _ in bases]
    reference = anchor if ranks[anchor] == max(ranks) else ranks.index(max(ranks))
    u_ref, _, v_ref = bases[reference]
    u_mean = s_mean = v_mean = 0
    for w, (u, s, v) in zip(weights, bases, strict=True):
        ru, rv = polar(u.T @ u_ref), polar(v.T @ v_ref)  # equation 2
        u_mean = u_mean + w * u @ ru  # equations 3 and 4
        s_mean = s_mean + w * ru.T @ s @ rv
        v_mean = v_mean + w * v @ rv
    return u_mean @ s_mean @ v_mean.T  # equation 5


def mean(deltas: Sequence[Tensor], weights: Sequence[float], rank: int | None = None) -> Tensor:
    """The weighted mean, cut to a rank."""
    total = sum(w * delta for w, delta in zip(weights, deltas, strict=True))
    u, s, vt = torch.linalg.svd(total, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def polar(x: Tensor) -> Tensor:
    p, _, qt = torch.linalg.svd(x, full_matrices=False)
    return p @ qt
