"""Singular value calibration (arXiv 2602.05536): count directions that adapters share only once.

    merged = U S V^T,    a_i = row r of U^T delta_i,    a = row r of U^T merged
    s_i = <a, a_i> / |a_i|^2,    S_r <- S_r N / sum_i max(alpha, s_i)

An adapter without a component in a direction does not count there.
"""

from typing import Annotated

import torch
from torch import Tensor

from gam_merge._deltas.core import Core, InCore, significant
from gam_merge._methods._rule import CoreRule, plugin
from gam_merge._methods._schema import Range

_NOTHING = 1e-20  # of the squared norm of a delta: less in a direction is rounding
_EQUAL = 1e-9  # relative distance of singular values below which their vectors are rounding


@plugin(
    "post",
    "svc",
    summary="scale each singular value so that the merge responds to each adapter's direction "
    "about once",
    reference="arXiv 2602.05536 (ICML 2026)",
    use="after sums, whose shared directions are counted several times",
    avoid="after iso_c and iso_cts: equal singular values do not single out directions",
)
def svc(
    core: Core,
    weights: Tensor,
    rule: CoreRule,
    *,
    alpha: Annotated[
        float | None, Range(0), "smaller responses count as this one; 1/N by default"
    ] = None,
) -> InCore:
    merged = rule(core, weights)
    u, s, vt = torch.linalg.svd(merged.x, full_matrices=False)  # (L, K, k), (L, k), (L, k, J)
    parts = u.mT.unsqueeze(1) @ core.m  # (L, N, k, J)
    squares = parts.square().sum(-1)  # (L, N, k)
    present = squares > _NOTHING * core.norms.square().unsqueeze(-1)
    inner = (parts * (s.unsqueeze(-1) * vt).unsqueeze(1)).sum(-1)  # (L, N, k)
    response = inner / torch.where(present, squares, 1.0)
    least = 1 / parts.shape[1] if alpha is None else alpha
    counted = torch.where(present, response.clamp(min=least), 0.0).sum(1)  # (L, k)
    gain = present.sum(1) / counted.clamp(min=torch.finfo(s.dtype).tiny)
    factor = torch.where(counted > 0, gain, 1.0)
    close = s[:, :-1] - s[:, 1:] < _EQUAL * s[:, :1]  # (L, k - 1)
    close &= significant(s, max(core.bucket.shape))[:, 1:]
    warnings = {
        **merged.warnings,
        "singular values are equal: their calibration is arbitrary": close.any(-1),
    }
    return InCore(u * (s * factor).unsqueeze(-2) @ vt, warnings)
