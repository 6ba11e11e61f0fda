"""DC-Merge (arXiv 2603.06242): even spectra, bases that cover all adapters, an election of signs.

    delta_i = U_i S_i V_i^T,    S_i <- a smoother spectrum with the same sum
    U, V = polar([U_1 ... U_N]), polar([V_1 ... V_N]),    C_i = U^T delta_i V

Each C_i keeps its largest entries, signs are elected and agreeing entries averaged; the r x r
blocks on the diagonal are lifted back. The official code keeps one entry in a thousand, but at
least one: r of them at the published N = 8, r = 16, and a single one at N = 3, r = 8.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor

from gam_merge._deltas.core import Core, InCore, isometry
from gam_merge._methods._rule import rule
from gam_merge._methods._schema import Range
from gam_merge._methods.ties import elect


@rule(
    "core",
    "dc_merge",
    summary="even spectra, joint orthonormal bases, and an election of signs between the adapters "
    "in these bases",
    reference="arXiv 2603.06242 (CVPR 2026)",
    use="for many specialists, uncut; tune `scale` if you can",
    avoid="when cut to the rank of one adapter; for adapters of one goal",
    breaks={
        "identity": "the spectrum of a single adapter is evened out too",
        "equal": "as for a single adapter",
    },
)
def dc_merge(
    core: Core,
    weights: Tensor,
    *,
    spectrum: Annotated[
        Literal["average", "linear"],
        "average: all singular values equal; linear: falling on a line",
    ] = "average",
    ratio: Annotated[
        float, Range(1), "linear: maximum ratio of the largest to the smallest value"
    ] = 5.0,
    keep: Annotated[
        float | None,
        Range(0, 1),
        "share of the entries that an adapter keeps; by default as many as its rank; the paper "
        "has 0.001",
    ] = None,
) -> InCore:
    size = max(core.bucket.shape)
    ps, _, qs = zip(*core.svds, strict=True)  # (L, K, k_i), (L, J, k_i)
    u = isometry(torch.cat(ps, -1), size)  # (L, K, R)
    v = isometry(torch.cat(qs, -1), size)  # (L, J, R)
    kept = []
    for p, s, q in core.svds:
        c = (u.mT @ p * _smooth(s, spectrum, ratio).unsqueeze(-2)) @ (q.mT @ v)  # (L, R, R)
        entries = c.shape[-1] ** 2
        count = s.shape[-1] if keep is None else max(1, int(keep * entries))
        smallest = entries - min(count, entries) + 1  # of those that are kept, in rising order
        least = c.flatten(1).abs().kthvalue(smallest).values[:, None, None]
        kept.append(c * (c.abs() >= least))
    merged = elect(torch.stack(kept, 1), weights, "weighted")  # (L, R, R)
    owner = torch.repeat_interleave(torch.tensor(core.bucket.ranks))
    blocks = (owner.unsqueeze(-1) == owner).to(merged.device)
    return InCore(u @ (merged * blocks) @ v.mT)


def _smooth(s: Tensor, spectrum: str, ratio: float) -> Tensor:
    """A spectrum of the same sum: (L, k)."""
    k = s.shape[-1]
    if spectrum == "average":
        return s.mean(-1, keepdim=True).expand_as(s)
    line = torch.ones_like(s)
    if k > 1:
        top = (s[:, :1] / s[:, -1:]).clamp(max=ratio)  # (L, 1)
        line = top + (1 - top) * torch.linspace(0, 1, k, dtype=s.dtype, device=s.device)
    return s.sum(-1, keepdim=True) * line / line.sum(-1, keepdim=True)
