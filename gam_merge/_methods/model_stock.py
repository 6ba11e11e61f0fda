"""Model Stock (arXiv 2403.19522): the mean, drawn back to the base as far as the deltas disagree.

cos = mean cosine of two deltas,    t = N cos / (1 + (N - 1) cos),    merged = t sum w_i delta_i
"""

import torch
from torch import Tensor

from gam_merge._methods._rule import Coefficients, rule


@rule(
    "coefficients",
    "model_stock",
    summary="the mean times a factor from 0 to 1 that falls with the angle between the deltas",
    reference="arXiv 2403.19522 (ECCV 2024)",
    use="for several runs of one task",
    avoid="for adapters with little in common: nearly orthogonal deltas leave almost nothing",
)
def model_stock(gram: Tensor, weights: Tensor) -> Coefficients:
    count = gram.shape[-1]
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()  # (L, N)
    cosines = gram / (norms.unsqueeze(-1) * norms.unsqueeze(-2))
    cosine = torch.ones_like(norms[:, 0])  # (L,)
    if count > 1:
        cosine = ((cosines.sum((-2, -1)) - count) / (count * (count - 1))).clamp(0.0, 1.0)
    t = count * cosine / (1 + (count - 1) * cosine)  # (L,)
    warnings = {"the deltas are nearly orthogonal: little is left": t < 0.1}
    return Coefficients(t.unsqueeze(-1) * weights, warnings)
