"""Subspace Boosting (arXiv 2506.16506): raise small singular values of a merge to a large one.

    k = the first index at which sum s_1..s_k reaches ``beta`` of the whole,    s_j <- max(s_j, s_k)

Over the non-zero singular values: directions that the adapters do not have stay empty.
"""

from typing import Annotated

import torch
from torch import Tensor

from gam_merge._deltas.core import significant
from gam_merge._methods._rule import plugin
from gam_merge._methods._schema import Range


@plugin(
    "post",
    "subspace_boost",
    summary="raise small singular values of the result to the one at a given share of the spectrum",
    reference="arXiv 2506.16506, over the non-zero singular values",
    use="after sums of many specialists",
    avoid="for language models, for which no gain is published; for adapters of one goal",
    breaks={
        "identity": "the spectrum of a single adapter is raised too",
        "equal": "as for a single adapter",
    },
    on="spectrum",
)
def subspace_boost(
    s: Tensor,
    size: int,
    *,
    beta: Annotated[float, Range(0, 1), "share of the sum of singular values"] = 0.01,
) -> Tensor:
    reached = s.cumsum(-1) >= beta * s.sum(-1, keepdim=True)
    floor = s.gather(-1, reached.int().argmax(-1, keepdim=True))  # (L, 1)
    return torch.where(significant(s, size), torch.maximum(s, floor), 0.0)
