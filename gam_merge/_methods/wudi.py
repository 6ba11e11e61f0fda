"""WUDI (arXiv 2503.08099) in closed form: the update that disturbs adapters least where they act.

    min over X of sum w_i |(X - delta_i) delta_i^T|^2 / |delta_i|^2
    G_i = w_i delta_i^T delta_i / |delta_i|^2,    C = sum G_i,    D = sum delta_i G_i,    X = D C^+

The paper descends with 300 steps of Adam at a learning rate of 1e-5 from X_0 = sum w_i delta_i: as
each moves an entry by about 1e-5 at most, how near it comes to the minimiser depends on the size of
the deltas, and ill-conditioned directions of C, which shared initialisations give, are left alone.
Two filters leave them alone whatever the size: ``ridge`` solves with C + ridge * |C| I, ``flow``
follows the gradient flow from X_0 for a time, which moves the direction of eigenvalue e by
1 - exp(-time * e / |C|).

``actmat`` (arXiv 2604.01329) is the same without the division by |delta_i|^2.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor

from gam_merge._deltas.core import Core, InCore, weighted_sum
from gam_merge._methods._rule import rule
from gam_merge._methods._schema import Range


@rule(
    "core",
    "wudi",
    summary="least squares: the update that agrees with each adapter on the directions it acts on",
    reference="arXiv 2503.08099 (ICML 2025), closed form and filters of this project",
    use="for specialists with separate initialisations",
    avoid="with a shared initialisation unless `ridge` is raised: norms explode",
    normalize=False,
    breaks={
        "identity": "the ridge shrinks a single adapter (filter=flow does not)",
        "equal": "as for a single adapter",
    },
)
def wudi(
    core: Core,
    weights: Tensor,
    *,
    filter: Annotated[
        Literal["ridge", "flow"], "treatment of ill-conditioned directions"
    ] = "ridge",
    ridge: Annotated[
        float, Range(0), "share of the largest eigenvalue that is added to all"
    ] = 0.01,
    time: Annotated[
        float, Range(0), "time of the flow: 0 is the sum, a long one the minimiser"
    ] = 300.0,
) -> InCore:
    target, values, q = _normal_equations(core, weights.abs() / core.norms.square())
    largest = values[:, -1:]
    if filter == "ridge":
        return InCore(_solve(target, values, q, ridge, max(core.bucket.shape)))
    moved = -torch.expm1(-time * values / largest)  # (L, J)
    gain = torch.where(values > 0, moved / values, time / largest)
    start = weighted_sum(weights, core.m)
    reached = target @ q * gain.unsqueeze(-2)  # (L, K, J), in the eigenbasis
    remaining = start @ q * (1 - moved).unsqueeze(-2)
    return InCore((reached + remaining) @ q.mT)


@rule(
    "core",
    "actmat",
    summary="like `wudi`, but large deltas count for more",
    reference="arXiv 2604.01329",
    use="see `wudi`",
    avoid="see `wudi`; its ridge is 0 by default",
    normalize=False,
)
def actmat(
    core: Core,
    weights: Tensor,
    *,
    ridge: Annotated[float, Range(0), "share of the largest eigenvalue that is added to all"] = 0.0,
) -> InCore:
    return InCore(_solve(*_normal_equations(core, weights.abs()), ridge, max(core.bucket.shape)))


def _normal_equations(core: Core, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """D (L, K, J), and the eigenvalues (L, J), rising, and eigenvectors (L, J, J) of C."""
    grams = shares[..., None, None] * core.m.mT @ core.m  # (L, N, J, J)
    values, q = torch.linalg.eigh(grams.sum(1))
    return (core.m @ grams).sum(1), values.clamp(min=0.0), q


def _solve(target: Tensor, values: Tensor, q: Tensor, ridge: float, size: int) -> Tensor:
    """D (C + ridge |C| I)^+, from the eigenvalues and eigenvectors of C."""
    largest = values[:, -1:]
    damped = values + ridge * largest
    real = damped > torch.finfo(values.dtype).eps * size * largest
    return target @ (q * torch.where(real, 1 / damped, 0.0).unsqueeze(-2)) @ q.mT
