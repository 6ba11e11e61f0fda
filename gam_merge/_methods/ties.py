"""TIES (arXiv 2306.01708): trim small entries, elect a sign per entry, average those that agree.

x_i <- x_i where |x_i| is among its largest ``density``
s = sign of sum w_i x_i
merged = (sum of w_i x_i where sign x_i = s) / (sum of w_i there)
"""

from typing import Annotated, Literal

import torch
from torch import Tensor

from gam_merge._deltas.core import weighted_sum
from gam_merge._methods._entries import Density, Entries, Scope
from gam_merge._methods._rule import rule

Election = Annotated[
    Literal["weighted", "total", "frequency"],
    "sign of the weighted sum (mergekit), of the plain sum, or of the majority (PEFT)",
]


@rule(
    "entries",
    "ties",
    summary="trim small entries, elect a sign per entry, average the entries that agree with it",
    reference="arXiv 2306.01708 (NeurIPS 2023)",
    use="for adapters of several tasks, in the space @knots or @ctm; tune `density` and `scale`",
    avoid="for language models without tuning: plain task arithmetic is more reliable there",
    breaks={
        "identity": "small entries of a single adapter are trimmed too",
        "equal": "as for a single adapter",
    },
)
def ties(
    entries: Entries,
    weights: Tensor,
    *,
    density: Density = 0.2,
    sign: Election = "weighted",
    scope: Scope = "module",
) -> Tensor:
    kept = entries.x.abs() >= entries.threshold(density, scope, 1)
    return elect(entries.x * kept, weights, sign)


@rule(
    "entries",
    "elect",
    summary="elect a sign per entry, average the entries that agree with it: `ties` untrimmed",
    reference="the election of arXiv 2306.01708 (NeurIPS 2023)",
    use="in the spaces @drm_h and @drm_v, which trim by themselves",
    avoid="elsewhere: `ties` with a small `density` suits adapters of several tasks better",
)
def untrimmed(entries: Entries, weights: Tensor, *, sign: Election = "weighted") -> Tensor:
    return elect(entries.x, weights, sign)


def elect(x: Tensor, weights: Tensor, sign: str) -> Tensor:
    """Return the weighted mean of the entries whose sign wins.

    x: (L, N, p, q), weights: (L, N) -> (L, p, q).
    """
    votes = {
        "weighted": lambda: weighted_sum(weights, x),
        "total": lambda: x.sum(1),
        "frequency": lambda: x.sign().sum(1),
    }
    up = votes[sign]().unsqueeze(1) >= 0  # (L, 1, p, q)
    agree = (x > 0) & up | (x < 0) & ~up
    total = weighted_sum(weights, agree.to(x.dtype))
    return weighted_sum(weights, x * agree) / torch.where(total > 0, total, 1.0)
