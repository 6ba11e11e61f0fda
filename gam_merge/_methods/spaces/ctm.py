"""Compress, then merge (arXiv 2606.03723): shared bases of rank k, then a rule on k x k matrices.

    max over U, V with k orthonormal columns of sum |U^T D_i V|^2,
    D_i = delta_i / |delta_i| (beta |delta_i| + (1 - beta) mean |delta|)

by higher-order orthogonal iteration, run on the cores until the bases hold still; then O_i = U^T
delta_i V is merged and lifted to U O V^T. The official code stops at a change of the error of 1e-6,
which can be a tenth of the result away from there.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from gam_merge._deltas.core import Core, InCore
from gam_merge._methods._entries import Blocks, Part, View
from gam_merge._methods._rule import space
from gam_merge._methods._schema import Range


@space(
    "ctm",
    summary="the deltas in shared bases of rank k: k x k matrices, a result of rank k",
    reference="arXiv 2606.03723 (ICML 2026)",
    rank="largest",
)
def ctm(
    core: Core,
    weights: Tensor,
    *,
    k: Annotated[int, Range(0), "rank of the shared bases; 0: the largest of the adapters"] = 0,
    beta: Annotated[
        float, Range(0, 1), "when bases are chosen, 1 weights adapters by their norms, 0 equally"
    ] = 0.0,
    iterations: Annotated[int, Range(1), "maximum number of iterations"] = 1000,
    tolerance: Annotated[
        float, Range(0), "sine of the angle that the bases still turn by, which ends the iteration"
    ] = 1e-6,
) -> View:
    k = min(k or max(core.bucket.ranks), *core.m.shape[-2:])
    norms = core.norms  # (L, N)
    lengths = beta * norms + (1 - beta) * norms.mean(-1, keepdim=True)
    u, v, moving = _shared_bases(core.scaled(lengths / norms).m, k, iterations, tolerance)
    u, v = core.orient(u, v)

    def lift(merged: Sequence[Blocks]) -> InCore:
        (x,) = merged[0]()
        return InCore(u @ x @ v.mT, {"the shared bases did not converge": moving})

    return View([Part.of("ctm", u.unsqueeze(1).mT @ core.m @ v.unsqueeze(1))], lift)


def _shared_bases(
    d: Tensor, k: int, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """U (L, K, k), V (L, J, k), and where they did not converge: d (L, N, K, J)."""
    u, v = _left(d, k), _left(d.mT, k)
    moving = torch.ones(len(d), dtype=torch.bool, device=d.device)
    for _ in range(iterations):
        rest = d[moving]  # (L', N, K, J)
        new_u = _left(rest @ v[moving].unsqueeze(1), k)
        new_v = _left(rest.mT @ new_u.unsqueeze(1), k)
        step = _apart(u[moving], new_u) + _apart(v[moving], new_v)  # (L',)
        u[moving], v[moving] = new_u, new_v
        moving[moving.clone()] = step > tolerance
        if not moving.any():
            break
    return u, v, moving


def _left(d: Tensor, k: int) -> Tensor:
    """The k leading left singular vectors of [d_1 ... d_N]: (L, N, K, J) -> (L, K, k)."""
    return torch.linalg.svd(torch.cat(d.unbind(1), -1), full_matrices=False)[0][..., :k]


def _apart(x: Tensor, y: Tensor) -> Tensor:
    """The sines of the angles between two subspaces, as one norm: (L, K, k) -> (L,)."""
    return (y - x @ (x.mT @ y)).norm(dim=(-2, -1))
