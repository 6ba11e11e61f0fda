"""Norms evened out before a merge, so that a loud adapter does not drown out the others."""

from typing import Annotated

import torch
from torch import Tensor

from gam_merge._deltas.core import Core, InCore
from gam_merge._methods._rule import CoreRule, plugin
from gam_merge._methods._schema import Range


@plugin(
    "pre",
    "norm_equalise",
    summary="bring the deltas of each module to one norm, or part of the way",
    reference="arXiv 2606.03723",
    use="where adapters were trained with different learning rates or alpha",
    avoid="where a small delta means that its adapter needs little change there",
)
def norm_equalise(
    core: Core,
    weights: Tensor,
    rule: CoreRule,
    *,
    beta: Annotated[float, Range(0, 1), "0: all at the mean norm, 1: unchanged"] = 0.0,
) -> InCore:
    norms = core.norms  # (L, N)
    lengths = beta * norms + (1 - beta) * norms.mean(-1, keepdim=True)
    return rule(core.scaled(lengths / norms), weights)


@plugin(
    "pre",
    "mad_cap",
    summary="cap the norms of each module's deltas a few median deviations above their median",
    reference="common robust statistics",
    use="where one of four or more adapters may have blown up",
    avoid="otherwise",
)
def mad_cap(
    core: Core,
    weights: Tensor,
    rule: CoreRule,
    *,
    deviations: Annotated[
        float, Range(0), "distance of the cap above the median, in median absolute deviations"
    ] = 3.0,
) -> InCore:
    norms = core.norms  # (L, N)
    median = norms.quantile(0.5, -1, keepdim=True)
    cap = median + deviations * (norms - median).abs().quantile(0.5, -1, keepdim=True)
    return rule(core.scaled(torch.minimum(norms, cap) / norms), weights)
