"""Iso-C (arXiv 2502.04959): the sum of the deltas with all its singular values made equal.

    sum w_i delta_i = U S V^T,    merged = mean(s) U V^T

Over the non-zero singular values: the paper's code fills the null space of a low-rank sum with
arbitrary directions.
"""

import torch
from torch import Tensor

from gam_merge._deltas.core import Core, InCore, flat, weighted_sum
from gam_merge._methods._rule import rule


@rule(
    "core",
    "iso_c",
    summary="the sum of the deltas with all non-zero singular values set to their mean",
    reference="arXiv 2502.04959 (ICML 2025), over the non-zero singular values",
    use="for specialists, uncut; tune `scale` if you can",
    avoid="when cut to the rank of one adapter, where it loses most of its effect; "
    "for adapters of one goal",
    normalize=False,
    breaks={
        "identity": "the spectrum of a single adapter is flattened too",
        "equal": "as for a single adapter, times N",
    },
)
def iso_c(core: Core, weights: Tensor) -> InCore:
    p, s, qt = torch.linalg.svd(weighted_sum(weights, core.m), full_matrices=False)
    return InCore(p * flat(s, max(core.bucket.shape)).unsqueeze(-2) @ qt)
