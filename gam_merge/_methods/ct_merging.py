"""Common and task directions (after arXiv 2607.20561), reconstructed from descriptions.

The paper's text and code were not at hand.

    U_c, V_c = leading eigenvectors of sum w_i U_i U_i^T and of sum w_i V_i V_i^T
    P S Q^T = U_c^T (sum w_i delta_i) V_c
    U_c <- U_c P, V_c <- V_c Q    pairs them, with common responses S
    U_i, s_i, V_i = leading triples of (I - U_c U_c^T) w_i delta_i (I - V_c V_c^T)
    s_i <- their root mean square
    merged = polar([U_c U_1 ... U_N]) diag(S, s_1, ..., s_N) polar([V_c V_1 ... V_N])^T
"""

from typing import Annotated

import torch
from torch import Tensor

from gam_merge._deltas.core import Core, InCore, isometry, significant, weighted_sum
from gam_merge._methods._rule import rule
from gam_merge._methods._schema import Range


@rule(
    "core",
    "ct_merging",
    summary="directions that adapters share, and the strongest remaining ones of each at their "
    "mean strength (a reconstruction)",
    reference="after arXiv 2607.20561; a reconstruction, not the paper's algorithm",
    use="for many specialists, uncut",
    avoid="for equal adapters: which directions count as common is then arbitrary",
    normalize=False,
    breaks={
        "identity": "the spectrum of what is not common is flattened",
        "equal": "as for a single adapter, times N",
    },
)
def ct_merging(
    core: Core,
    weights: Tensor,
    *,
    common: Annotated[int, Range(1), "number of common directions"] = 4,
    own: Annotated[int, Range(1), "maximum number of further directions per adapter"] = 16,
) -> InCore:
    size = max(core.bucket.shape)
    common = min(common, *core.m.shape[-2:])
    m = weights[..., None, None] * core.m  # (L, N, K, J)
    u = _leading(core.lefts, weights, common)  # (L, K, c)
    v = _leading(core.rights, weights, common)  # (L, J, c)
    p, s, qt = torch.linalg.svd(u.mT @ weighted_sum(weights, core.m) @ v)
    us, spectra, vs = [u @ p], [s], [v @ qt.mT]
    rest = m - u.unsqueeze(1) @ (u.mT.unsqueeze(1) @ m)
    rest = rest - (rest @ v.unsqueeze(1)) @ v.mT.unsqueeze(1)
    for i, rank in enumerate(core.bucket.ranks):
        left, values, right = torch.linalg.svd(rest[:, i], full_matrices=False)
        k = min(own, rank)
        real = significant(values, size)[:, :k] & (values[:, :k] > 1e-12 * core.norms[:, i, None])
        squares = (values[:, :k] * real).square().sum(-1, keepdim=True)
        strength = squares / real.sum(-1, keepdim=True).clamp(min=1)
        us.append(left[..., :k] * real.unsqueeze(-2))
        vs.append(right.mT[..., :k] * real.unsqueeze(-2))
        spectra.append(strength.sqrt() * real)
    left, right = isometry(torch.cat(us, -1), size), isometry(torch.cat(vs, -1), size)
    return InCore(left * torch.cat(spectra, -1).unsqueeze(-2) @ right.mT)


def _leading(bases: tuple[Tensor, ...], weights: Tensor, count: int) -> Tensor:
    """The directions that most adapters have: (L, K, count)."""
    share = weights.abs()[..., None, None]
    projector = torch.stack([x @ x.mT for x in bases], 1)  # (L, N, K, K)
    return torch.linalg.eigh((share * projector).sum(1))[1].flip(-1)[..., :count]
