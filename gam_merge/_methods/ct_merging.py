"""CT-Merging (arXiv 2607.20561): common directions, then those of each task, at mean strengths.

    U_c = leading eigenvectors of sum U_i U_i^T: the output directions that most adapters have
    P S Q^T = U_c^T mean(w_i delta_i),    rms(S) the strength of U_c P and Q
    R_i = (I - U_c U_c^T) U_i,            rms(s_i) the strength of R_i and V_i
    merged = polar([U_c P R_1 ... R_N]) diag(strengths) polar([Q V_1 ... V_N])^T

where U_i, s_i, V_i are the leading singular triples of w_i delta_i. There is no official code, and
the paper's text was not at hand: this is its Algorithm 1 as an independent implementation gives it
(ComfyUI-LoRA-Optimizer), with the same three guards. Directions of an adapter that are common are
left out of R_i and V_i, only the row space of the stacks is made orthonormal, and U_c ends before
several equal eigenvalues of which it would hold some.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from gam_merge._deltas.core import Core, InCore, isometry, significant, weighted_sum
from gam_merge._methods._rule import rule
from gam_merge._methods._schema import Range

_EQUAL = 1e-9  # of N: closer eigenvalues do not single out a direction
_GONE = 1e-12  # a unit vector of which less is left was common


@rule(
    "core",
    "ct_merging",
    summary="output directions that most adapters have, and the remaining ones of each, at their "
    "mean strength",
    reference="arXiv 2607.20561, Algorithm 1, from an independent implementation of it",
    use="for many specialists, uncut",
    avoid="for adapters of one goal: all singular values of an adapter count alike",
    normalize=False,
    breaks={
        "identity": "the spectrum of a single adapter is flattened",
        "equal": "as for a single adapter",
    },
)
def ct_merging(
    core: Core,
    weights: Tensor,
    *,
    common: Annotated[int, Range(0), "maximum number of common directions"] = 4,
    own: Annotated[int, Range(1), "number of singular triples that count of each adapter"] = 16,
) -> InCore:
    size = max(core.bucket.shape)
    leading = [(left[..., :own], s[..., :own], right[..., :own]) for left, s, right in core.svds]
    u = _common([left for left, _, _ in leading], min(common, core.m.shape[-2]))  # (L, K, c)
    response = u.mT @ weighted_sum(weights, core.m) / core.m.shape[1]  # (L, c, J)
    p, s, qt = torch.linalg.svd(response, full_matrices=False)
    real = significant(s, size)  # (L, k)
    lefts, strengths, rights = [u @ p * real.unsqueeze(-2)], [_rms(s * real, real)], [qt.mT]
    for i, (left, s, right) in enumerate(leading):
        rest = left - u @ (u.mT @ left)  # (L, K, k_i)
        lefts.append(rest * weights[:, i, None, None].sign())
        strengths.append(_rms(weights[:, i, None] * s, torch.ones_like(s)))
        rights.append(right)
    stack = torch.cat(lefts, -1)  # (L, K, d)
    live = (stack.norm(dim=-2, keepdim=True) > _GONE).to(stack.dtype)  # (L, 1, d)
    left, right = isometry(stack * live, size), isometry(torch.cat(rights, -1) * live, size)
    return InCore(left * torch.cat(strengths, -1).unsqueeze(-2) @ right.mT)


def _common(bases: Sequence[Tensor], count: int) -> Tensor:
    """The directions that most adapters have, zero where none stands out: (L, K, count)."""
    shares, directions = torch.linalg.eigh(torch.stack([x @ x.mT for x in bases], 1).sum(1))
    shares = shares.flip(-1)  # (L, K), falling
    after = torch.nn.functional.pad(shares[:, 1:], (0, 1), value=-1.0)
    ends = shares - after > _EQUAL * len(bases)  # the common directions may end here
    ends_later = ends[:, :count].flip(-1).cumsum(-1).flip(-1) > 0  # here or further on
    return directions.flip(-1)[..., :count] * ends_later.unsqueeze(-2)


def _rms(s: Tensor, real: Tensor) -> Tensor:
    """The root mean square of the singular values that are real, for each of them: (L, k)."""
    squares = s.square().sum(-1, keepdim=True)
    return (squares / real.sum(-1, keepdim=True).clamp(min=1)).sqrt().expand_as(s)
