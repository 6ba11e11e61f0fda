"""A Frechet mean of low-rank matrices, reconstructed: this project's reading of arXiv 2604.27155.

The paper's algorithm could not be read.

Deltas are points (U, S, V) up to one rotation for all three, with orthonormal U, V and positive
definite S:

    Q_i = polar(U_i^T U + V_i^T V)
    U = polar(sum w_i U_i Q_i),    V = polar(sum w_i V_i Q_i)    until nothing moves
    S = exp(sum w_i Q_i^T log(S_i) Q_i),    merged = U S V^T

One rotation, where ``gam`` has two, and means on the manifolds, so that norms do not shrink.
"""

from typing import Annotated

import torch
from torch import Tensor

from gam_kernels import polar
from gam_merge._common.errors import GamMergeError
from gam_merge._deltas.core import Core, InCore, weighted_sum
from gam_merge._methods._rule import rule
from gam_merge._methods._schema import Range

_CONVERGED = 1e-12


@rule(
    "core",
    "frechet",
    summary="a mean of subspaces and spectra under one joint rotation, without shrinking "
    "(a reconstruction)",
    reference="after arXiv 2604.27155; a reconstruction, not the paper's algorithm",
    use="for adapters of one goal, where `gam` shrinks too much",
    avoid="where subspaces hardly overlap: the mean is not unique; for adapters of different "
    "ranks: refused",
    rank="largest",
    anchored=True,
    breaks={
        "permutation": "it starts at the anchor, and may end elsewhere from another start",
        "mixed ranks": "deltas of different ranks do not have a mean here",
        "deficient": "a delta of lower rank is refused among others, for the same reason",
    },
)
def frechet(
    core: Core,
    weights: Tensor,
    *,
    iterations: Annotated[int, Range(1), "maximum number of iterations"] = 500,
) -> InCore:
    ranks = core.bucket.ranks
    if len(set(ranks)) > 1:
        raise GamMergeError(
            f"module {core.bucket.names[0]} has deltas of numerical ranks {ranks}; "
            "frechet needs equal ones: use gam"
        )
    svds = zip(*core.svds, strict=True)
    us, spectra, vs = (torch.stack(side, 1) for side in svds)  # (L, N, K, k), (L, N, k), ...
    u, v = us[:, core.bucket.reference], vs[:, core.bucket.reference]  # (L, K, k), (L, J, k)
    moving = torch.ones(len(u), dtype=torch.bool, device=u.device)
    for _ in range(iterations):
        turned = polar(us.mT @ u.unsqueeze(1) + vs.mT @ v.unsqueeze(1)).rotation  # (L, N, k, k)
        new_u = polar(torch.einsum("ln,lnka,lnab->lkb", weights, us, turned)).rotation
        new_v = polar(torch.einsum("ln,lnja,lnab->ljb", weights, vs, turned)).rotation
        step = (new_u - u).norm(dim=(-2, -1)) + (new_v - v).norm(dim=(-2, -1))
        u = torch.where(moving[:, None, None], new_u, u)
        v = torch.where(moving[:, None, None], new_v, v)
        moving = moving & (step > _CONVERGED * u.shape[-1])
        if not moving.any():
            break
    turned = polar(us.mT @ u.unsqueeze(1) + vs.mT @ v.unsqueeze(1)).rotation
    logs = turned.mT @ (spectra.log().unsqueeze(-1) * turned)  # (L, N, k, k)
    middle = torch.linalg.matrix_exp(weighted_sum(weights, logs))
    return InCore(u @ middle @ v.mT, {"the mean did not converge: it may not be unique": moving})
