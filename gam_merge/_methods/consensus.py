"""Consensus filters: one family that holds the mean, TSV-M and Iso-C, without an anchor.

    P_U = sum w_i U_i U_i^T,    P_V = sum w_i V_i V_i^T
    merged = f(P_U) (sum w_i delta_i) f(P_V),    f(l) = max(l, 1/N)^p
    s_j <- mean(s)^(1 - q) s_j^q    over the non-zero singular values of the result

An eigenvalue of P is 1 in a direction that all adapters share and 1/N in one that a single adapter
has to itself: p > 0 keeps what they agree on, p < 0 lifts what each has alone, p = 0 is the mean.
q = 0 makes the spectrum flat. Below 1/N there is only the disagreement of nearly shared directions;
the floor makes the result continuous there.

Without the floor p = -1/2 is TSV-M: polar([U_1 ... U_N]) = (N P_U)^(-1/2) [U_1 ... U_N]. With p = 0
and q = 0 it is Iso-C / N.
"""

from functools import reduce
from typing import Annotated

import torch
from torch import Tensor

from gam_merge._deltas.core import Core, InCore, significant, weighted_sum
from gam_merge._methods._rule import rule
from gam_merge._methods._schema import Range

Exponent = Annotated[float | None, Range(-2, 2), "p of one side, if it differs between the two"]


@rule(
    "core",
    "consensus",
    summary="the mean, its directions weighted by how many adapters share them; "
    "p < 0 lifts private ones",
    reference="this project",
    use="p around -0.25 for adapters of any kind; lower, with q below 1, for specialists",
    avoid="p > 0 for specialists: it keeps only what they share",
)
def consensus(
    core: Core,
    weights: Tensor,
    *,
    p: Annotated[
        float, Range(-2, 2), "exponent of the share of adapters that have a direction"
    ] = -0.25,
    q: Annotated[
        float, Range(0, 1), "exponent of the singular values: 1 keeps them, 0 makes them equal"
    ] = 1.0,
    p_u: Exponent = None,
    p_v: Exponent = None,
    floor: Annotated[bool, "treat eigenvalues below 1/N as 1/N"] = True,
) -> InCore:
    mean = weighted_sum(weights, core.m)
    left = _filter(core.lefts, weights, _exponent(p_u, p), floor)
    right = _filter(core.rights, weights, _exponent(p_v, p), floor)
    return InCore(_flatten(left @ mean @ right, q, max(core.bucket.shape)))


def _exponent(side: float | None, p: float) -> float:
    return p if side is None else side


def _filter(bases: tuple[Tensor, ...], weights: Tensor, p: float, floor: bool) -> Tensor:
    """f(P): (L, K, K), from bases (L, K, k_i)."""
    projectors = [weights[:, i, None, None] * x @ x.mT for i, x in enumerate(bases)]
    projector = reduce(torch.add, projectors)  # (L, K, K)
    shares, directions = _eigen(projector)  # (L, K), (L, K, K)
    least = 1 / len(bases) if floor else torch.finfo(shares.dtype).tiny
    shares = shares.clamp(min=least)
    return directions * shares.pow(p).unsqueeze(-2) @ directions.mT


def _eigen(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (L, K) and eigenvectors (L, K, K) of symmetric matrices up to 1 in size.

    Those of diagonal ones are known: the coordinates of a core diagonalise the projector of equal
    weights.
    """
    values = x.diagonal(dim1=-2, dim2=-1).clone()
    rest = (x - torch.diag_embed(values)).flatten(1)  # (L, K K)
    vectors = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x).clone()
    full = rest.abs().amax(-1) > x.shape[-1] * torch.finfo(x.dtype).eps  # (L,)
    if full.any():
        values[full], vectors[full] = torch.linalg.eigh(x[full])
    return values, vectors


def _flatten(x: Tensor, q: float, size: int) -> Tensor:
    """The singular values drawn to their mean by q."""
    if q == 1.0:
        return x
    left, s, right = torch.linalg.svd(x, full_matrices=False)
    real = significant(s, size)  # (L, k)
    mean = (s * real).sum(-1, keepdim=True) / real.sum(-1, keepdim=True)
    s = torch.where(real, mean.pow(1 - q) * s.pow(q), 0.0)
    return left * s.unsqueeze(-2) @ right
