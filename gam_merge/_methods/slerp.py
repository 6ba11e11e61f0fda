"""Spherical interpolation of two deltas, from the angle between them.

    c_1 = sin((1 - t) theta) / sin(theta),    c_2 = sin(t theta) / sin(theta)
    t = w_2 / (w_1 + w_2)

Linear where they are nearly parallel. ``slerp`` has one angle per module (or for all modules),
``nuslerp`` may have one per row or column.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor

from gam_kernels import Delta
from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._methods._gram import inner_products
from gam_merge._methods._rule import Coefficients, rule
from gam_merge._methods._schema import Range
from gam_merge._methods.linear import combination

Parallel = Annotated[float, Range(0, 1), "cosine above which the interpolation is linear"]


@rule(
    "coefficients",
    "slerp",
    summary="spherical interpolation of two deltas",
    reference="mergekit `slerp`, on deltas",
    use="for two adapters of one goal",
    avoid="for adapters that have little in common: it is then a mean of larger norm",
    adapters=2,
    breaks={"identity": "it takes two adapters"},
)
def slerp(gram: Tensor, weights: Tensor, *, parallel: Parallel = 0.9995) -> Coefficients:
    if gram.shape[-1] == 1:  # the other adapter lacks the module
        return Coefficients(weights)
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    return Coefficients(_interpolation(gram[:, 0, 1] / norms.prod(-1), weights, parallel))


@rule(
    "bucket",
    "nuslerp",
    summary="spherical interpolation of two deltas, whole or row by row or column by column",
    reference="mergekit `nuslerp`, on deltas",
    use="see `slerp`",
    avoid="see `slerp`",
    adapters=2,
    composes=False,  # rows of a core are not rows of a module
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
        c = slerp.function(inner_products(bucket), weights, parallel=parallel).c
        return combination(bucket, c)
    x, y = bucket.deltas
    if each == "row":
        _, cross = bucket.cross(0, 1)  # (L, k_1, k_2)
        b, a = _by_rows(_row_form(x), _row_form(y), cross, weights, parallel)
    else:  # columns of a delta are rows of its transpose
        cross, _ = bucket.cross(0, 1)
        a, b = _by_rows(_column_form(x), _column_form(y), cross, weights, parallel)
    eye = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device).expand(len(b), -1, -1)
    return Merged(eye, eye, b=b, a=a)


def _row_form(x: Delta) -> tuple[Tensor, Tensor]:
    """Write a delta as left right^T with orthonormal right: (L, m, k), (L, n, k).

    Rows of left are then rows of the delta in another basis.
    """
    return x.b64 @ x.u @ x.core, x.a64 @ x.v


def _column_form(x: Delta) -> tuple[Tensor, Tensor]:
    """Write its transpose like that: (L, n, k), (L, m, k)."""
    return x.a64 @ x.v @ x.core.mT, x.b64 @ x.u


def _by_rows(
    x: tuple[Tensor, Tensor],
    y: tuple[Tensor, Tensor],
    cross: Tensor,
    weights: Tensor,
    parallel: float,
) -> tuple[Tensor, Tensor]:
    """Interpolate the rows of two matrices left right^T: x and y (left, right).

    cross: (L, k_1, k_2), inner products of the columns of their right sides.
    -> left (L, m, k_1 + k_2), right (L, n, k_1 + k_2).
    """
    (left_x, right_x), (left_y, right_y) = x, y
    inner = ((left_x @ cross) * left_y).sum(-1)  # (L, m)
    product = left_x.norm(dim=-1) * left_y.norm(dim=-1)
    cosine = inner / product.clamp(min=torch.finfo(product.dtype).tiny)
    cosine = torch.where(product > 0, cosine, 1.0)
    c = _interpolation(cosine, weights.unsqueeze(-2), parallel)  # (L, m, 2)
    left = torch.cat([left_x * c[..., :1], left_y * c[..., 1:]], -1)
    return left, torch.cat([right_x, right_y], -1)


def _interpolation(cosine: Tensor, weights: Tensor, parallel: float) -> Tensor:
    """c_1 and c_2 from cosines (...) and weights (..., 2) that sum to one: (..., 2)."""
    theta = cosine.clamp(-1.0, 1.0).arccos().unsqueeze(-1)
    straight = (cosine.abs() > parallel).unsqueeze(-1)
    curved = (weights * theta).sin() / torch.where(straight, 1.0, theta.sin())
    return torch.where(straight, weights.expand_as(curved), curved)
