"""Geometric median: the point with the least sum of distances to the deltas.

    min over X of sum w_i |X - delta_i|
    c_i <- w_i / |X - delta_i|, normalised (Weiszfeld, Tohoku Math. J. 43, 1937)

It is a mean that outliers do not move.
"""

from typing import Annotated

import torch
from torch import Tensor

from gam_merge._methods._rule import Coefficients, rule
from gam_merge._methods._schema import Range

_TOUCHING = 1e-12  # of the largest norm: closer than this the median sits on a delta


@rule(
    "coefficients",
    "geometric_median",
    summary="the point with the least weighted sum of distances to the deltas",
    reference="Weiszfeld (1937); as a merge: this project",
    use="where one adapter of many may be broken",
    avoid="for two adapters (it is their mean, or the heavier one) and for specialists",
)
def geometric_median(
    gram: Tensor,
    weights: Tensor,
    *,
    iterations: Annotated[int, Range(1), "maximum number of iterations"] = 1000,
    tolerance: Annotated[
        float, Range(0), "change of the coefficients that ends the iteration"
    ] = 1e-10,
) -> Coefficients:
    squares = gram.diagonal(dim1=-2, dim2=-1)  # (L, N)
    least = _TOUCHING * squares.amax(-1, keepdim=True).sqrt()
    c, moving = weights, torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    for _ in range(iterations):
        inner = (gram @ c.unsqueeze(-1)).squeeze(-1)  # <delta_i, X>
        distance = (squares - 2 * inner + (c * inner).sum(-1, keepdim=True)).clamp(min=0.0).sqrt()
        new = weights / torch.maximum(distance, least)
        new = torch.where(moving.unsqueeze(-1), new / new.sum(-1, keepdim=True), c)
        moving = moving & ((new - c).abs().amax(-1) > tolerance)
        c = new
        if not moving.any():
            break
    return Coefficients(c, {"the median did not converge": moving})
