"""Spherical interpolation of two deltas, from the angle between them.

    c_1 = sin((1 - t) theta) / sin(theta),    c_2 = sin(t theta) / sin(theta),    t = w_2 / (w_1 + w_2)

Straight where they are nearly parallel. ``slerp`` has one angle for the module (or all modules), ``nuslerp`` may have
one for each row or column.
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._methods._rule import Coefficients, rule
from gam_merge._methods._schema import Range
from gam_merge._methods._survey import inner_products
from gam_merge._methods.linear import combination

Parallel = Annotated[float, Range(0, 1), "cosine above which the interpolation is straight"]


@rule(
    "coefficients",
    "slerp",
    summary="spherical interpolation of two deltas",
    reference="mergekit `slerp`, on deltas",
    use="for two adapters of one goal",
    avoid="for adapters that have little in common: it is a mean of larger norm",
    adapters=2,
    breaks={"identity": "it takes two adapters"},
)
def slerp(gram: Tensor, weights: Tensor, *, parallel: Parallel = 0.9995) -> Coefficients:
    if gram.shape[-1] == 1:  # the other one lacks the module
        return Coefficients(weights)
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    return Coefficients(_interpolation(gram[:, 0, 1] / norms.prod(-1), weights, parallel))


@rule(
    "bucket",
    "nuslerp",
    summary="spherical interpolation of two deltas, whole or row by row or column by column",
    reference="mergekit `nuslerp`, on deltas",
    use="as `slerp`",
    avoid="as `slerp`",
    adapters=2,
    composes=False,  # rows of a core are no rows of a module
    breaks={"identity": "it takes two adapters"},
)
def nuslerp(
    bucket: Bucket,
    weights: Tensor,
    *,
    each: Annotated[Literal["module", "row", "column"], "what has an angle of its own"] = "module",
    parallel: Parallel = 0.9995,
) -> Merged:
    if len(bucket.deltas) == 1:
        return combination(bucket, weights)
    if each == "module":
        return combination(
            bucket, slerp.function(inner_products(bucket), weights, parallel=parallel).c
        )
    x, y = bucket.deltas
    _, cross = bucket.cross(0, 1) if each == "row" else bucket.cross(0, 1)[::-1]  # (L, k_1, k_2)
    if each == "row":  # delta = left right^T with orthonormal right: the rows of left tell all
        (left, right), (left_2, right_2) = ((d.b64 @ d.u @ d.core, d.a64 @ d.v) for d in (x, y))
    else:
        (left, right), (left_2, right_2) = ((d.a64 @ d.v @ d.core.mT, d.b64 @ d.u) for d in (x, y))
    inner = ((left @ cross) * left_2).sum(-1)  # (L, m)
    product = left.norm(dim=-1) * left_2.norm(dim=-1)
    cosine = torch.where(
        product > 0, inner / product.clamp(min=torch.finfo(product.dtype).tiny), 1.0
    )
    c = _interpolation(cosine, weights.unsqueeze(-2), parallel)  # (L, m, 2)
    scaled, other = (
        torch.cat([left * c[..., :1], left_2 * c[..., 1:]], -1),
        torch.cat([right, right_2], -1),
    )
    eye = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device).expand(
        len(scaled), -1, -1
    )
    merged = Merged(eye, eye, b=scaled, a=other)
    return merged if each == "row" else replace(merged, b=other, a=scaled)


def _interpolation(cosine: Tensor, weights: Tensor, parallel: float) -> Tensor:
    """c_1 and c_2: cosine (...), weights (..., 2) that sum to one -> (..., 2)."""
    theta = cosine.clamp(-1.0, 1.0).arccos().unsqueeze(-1)
    straight = (cosine.abs() > parallel).unsqueeze(-1)
    curved = (weights * theta).sin() / torch.where(straight, 1.0, theta.sin())
    return torch.where(straight, weights.expand_as(curved), curved)
