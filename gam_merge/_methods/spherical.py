"""Means on the sphere: sum c_i delta_i, with c found from the inner products <delta_i, delta_j>.

Deltas are vectors of N coefficients over the unit deltas u_i, whose inner products are the cosines
C (L, N, N).

    log_p(u) = theta / sin(theta) (u - cos(theta) p),    exp_p(v) = cos |v| p + sin |v| v / |v|
"""

from typing import Annotated

import torch
from torch import Tensor

from gam_merge._methods._rule import Coefficients, rule
from gam_merge._methods._schema import Range

_TINY = 1e-12  # of unit vectors: below it a direction is rounding
_OPPOSED = "the adapters cancel out: there is no mean direction"


@rule(
    "coefficients",
    "multislerp",
    summary="one step of the mean on the sphere from the mean direction, at the mean norm",
    reference="mergekit `multislerp` as it is described; its code omits theta / sin theta, and so "
    "stays at the mean direction",
    use="like `karcher`, of which it is one step",
    avoid="for adapters of several tasks: it is a mean whose norm is restored",
)
def multislerp(gram: Tensor, weights: Tensor) -> Coefficients:
    norms, cosines = _normalized(gram)
    p, length = _mean_direction(cosines, weights)
    p, _ = _step(p, cosines, weights)
    return _at_mean_norm(p, norms, weights, {_OPPOSED: length < _TINY})


@rule(
    "coefficients",
    "karcher",
    summary="the mean on the sphere (Karcher), at the mean norm",
    reference="mergekit `karcher`",
    use="for adapters of one goal whose directions differ: a mean that does not shrink",
    avoid="for adapters of several tasks: it is a mean whose norm is restored",
)
def karcher(
    gram: Tensor,
    weights: Tensor,
    *,
    iterations: Annotated[int, Range(1), "maximum number of iterations"] = 100,
    tolerance: Annotated[float, Range(0), "length of a step that ends the iteration"] = 1e-10,
) -> Coefficients:
    norms, cosines = _normalized(gram)
    p, length = _mean_direction(cosines, weights)
    moving = torch.ones(len(p), dtype=torch.bool, device=p.device)
    for _ in range(iterations):
        new, step = _step(p, cosines, weights)
        p = torch.where(moving.unsqueeze(-1), new, p)
        moving = moving & (step > tolerance)
        if not moving.any():
            break
    warnings = {_OPPOSED: length < _TINY, "the mean did not converge": moving}
    return _at_mean_norm(p, norms, weights, warnings)


def _normalized(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Norms (L, N) and cosines (L, N, N)."""
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    return norms, gram / (norms.unsqueeze(-1) * norms.unsqueeze(-2))


def _length(p: Tensor, cosines: Tensor) -> Tensor:
    """|p|: (L, N) -> (L,)."""
    return torch.einsum("ln,lnk,lk->l", p, cosines, p).clamp(min=0.0).sqrt()


def _mean_direction(cosines: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """sum w_i u_i of length one, and its length before."""
    length = _length(weights, cosines)
    return weights / length.clamp(min=_TINY).unsqueeze(-1), length


def _step(p: Tensor, cosines: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """exp_p(sum w_i log_p(u_i)) (L, N), and the length of the tangent."""
    cos = (cosines @ p.unsqueeze(-1)).squeeze(-1).clamp(-1.0, 1.0)  # (L, N)
    theta = cos.arccos()
    stretch = torch.where(theta > 1e-7, theta / theta.sin().clamp(min=_TINY), 1.0)
    v = weights * stretch - (weights * stretch * cos).sum(-1, keepdim=True) * p
    length = _length(v, cosines)
    rise = torch.where(length > _TINY, length.sin() / length.clamp(min=_TINY), 1.0)
    p = length.cos().unsqueeze(-1) * p + rise.unsqueeze(-1) * v
    return p / _length(p, cosines).clamp(min=_TINY).unsqueeze(-1), length


def _at_mean_norm(
    p: Tensor, norms: Tensor, weights: Tensor, warnings: dict[str, Tensor]
) -> Coefficients:
    mean = (weights * norms).sum(-1, keepdim=True)
    return Coefficients(mean * p / norms, warnings)
