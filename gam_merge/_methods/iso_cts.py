"""Iso-CTS (arXiv 2502.04959): common directions, and the strongest remaining ones of each task.

    U_c, V_c = leading k singular vectors of sum w_i delta_i
    U_i, s_i, V_i = leading s singular triples of (I - U_c U_c^T) w_i delta_i
    merged = mean of all these singular values * polar([U_c U_1 ... U_N]) polar([V_c V_1 ... V_N])^T

``iso_cts``: out of the K = min(K_u, K_v) dimensions that the deltas span, each task gets
s = round((K - floor(fraction K)) / N), as in the official code, and what is common gets k = K - N
s. ``iso_cts_r``, the variant of Compress then Merge (arXiv 2606.03723): K is the rank of one
adapter and s is given.
"""

from typing import Annotated

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._deltas.core import Core, InCore, isometry, significant
from gam_merge._methods._rule import rule
from gam_merge._methods._schema import Range

_BREAKS = {
    "identity": "the spectrum of a single adapter is flattened too",
    "equal": "as for a single adapter, times N",
}


@rule(
    "core",
    "iso_cts",
    summary="common directions of the sum and the strongest remaining ones of each adapter, "
    "all equally strong",
    reference="arXiv 2502.04959 (ICML 2025), within the rank of the adapters",
    use="for many specialists, uncut; tune `scale` if you can",
    avoid="when cut to the rank of one adapter; for adapters of one goal",
    normalize=False,
    breaks=_BREAKS,
)
def iso_cts(
    core: Core,
    weights: Tensor,
    *,
    fraction: Annotated[float, Range(0, 1), "share of the dimensions that is common"] = 0.8,
) -> InCore:
    count, dimensions = core.m.shape[1], min(core.m.shape[-2:])
    own = round((dimensions - int(dimensions * fraction)) / count)
    return _common_and_own(core, weights, dimensions, min(own, dimensions // count))


@rule(
    "core",
    "iso_cts_r",
    summary="like `iso_cts`, with no more directions in all than one adapter has",
    reference="arXiv 2502.04959 (ICML 2025), at rank r as in arXiv 2606.03723 (ICML 2026)",
    use="for specialists where the output must have the rank of one adapter",
    avoid="for more adapters than they have rank; for adapters of one goal",
    rank="largest",
    normalize=False,
    breaks={**_BREAKS, "equal": "directions of their own are spent on what equal adapters share"},
)
def iso_cts_r(
    core: Core,
    weights: Tensor,
    *,
    own: Annotated[int, Range(0), "directions of each adapter; the others are common"] = 1,
) -> InCore:
    count, dimensions = core.m.shape[1], max(core.bucket.ranks)
    if count * own > dimensions:
        raise GamMergeError(
            f"module {core.bucket.names[0]} has rank {dimensions}: too few directions for {own} of "
            f"each of {count} adapters; use iso_cts, or a smaller own"
        )
    return _common_and_own(core, weights, dimensions, own)


def _common_and_own(core: Core, weights: Tensor, dimensions: int, own: int) -> InCore:
    """Merge ``own`` directions of each adapter and as many common ones as are left."""
    size = max(core.bucket.shape)
    m = weights[..., None, None] * core.m  # (L, N, K, J)
    common = _leading(m.sum(1), dimensions - m.shape[1] * own, size)
    rest = m - common[0].unsqueeze(1) @ (common[0].mT.unsqueeze(1) @ m)
    parts = [common, *(_leading(x, own, size) for x in rest.unbind(1))]
    sides = zip(*parts, strict=True)
    u, s, v = (torch.cat(side, -1) for side in sides)  # (L, K, d), (L, d), (L, J, d)
    mean = s.sum(-1) / (s > 0).sum(-1).clamp(min=1)
    return InCore(mean[:, None, None] * isometry(u, size) @ isometry(v, size).mT)


def _leading(x: Tensor, count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triples, zero where x has none: (L, K, count), (L, count), (L, J, count)."""
    p, s, qt = torch.linalg.svd(x, full_matrices=False)
    real = significant(s, size)[:, :count]
    u, v = p[..., :count] * real.unsqueeze(-2), qt.mT[..., :count] * real.unsqueeze(-2)
    return u, torch.where(real, s[:, :count], 0.0), v
