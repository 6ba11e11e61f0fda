"""DELLA (arXiv 2406.11617): drop entries at random, small ones of a row more often than large ones.

Within each row the probability to stay rises with the rank of |x| from density - epsilon to density
+ epsilon; what stays is divided by its probability. Then sum (``della_linear``) or elect and
average (``della``).
"""

from typing import Annotated

import torch
from torch import Tensor

from gam_merge._deltas.core import weighted_sum
from gam_merge._methods._entries import Density, Entries, Seed
from gam_merge._methods._rule import rule
from gam_merge._methods._schema import Range
from gam_merge._methods.ties import Election, elect

Spread = Annotated[
    float,
    Range(0, 1),
    "distance from density of the probabilities to keep the largest and the smallest entry",
]
_BREAKS = {
    "identity": "entries of a single adapter are dropped at random",
    "equal": "different entries are dropped from each adapter",
}


@rule(
    "entries",
    "della",
    summary="drop entries at random, small ones more often, then elect signs and average "
    "like `ties`",
    reference="arXiv 2406.11617",
    use="as a control for `dare_ties`; try several seeds",
    avoid="for LoRA in general: there is no published gain over task arithmetic",
    breaks=_BREAKS,
)
def della(
    entries: Entries,
    weights: Tensor,
    *,
    density: Density = 0.7,
    epsilon: Spread = 0.15,
    sign: Election = "weighted",
    seed: Seed = 0,
) -> Tensor:
    return elect(_dropped(entries, density, epsilon, seed), weights, sign)


@rule(
    "entries",
    "della_linear",
    summary="drop entries at random, small ones more often, and rescale, then sum",
    reference="arXiv 2406.11617",
    use="as a control for `dare`; try several seeds",
    avoid="for LoRA in general: there is no published gain over task arithmetic",
    normalize=False,
    breaks=_BREAKS,
)
def della_linear(
    entries: Entries,
    weights: Tensor,
    *,
    density: Density = 0.7,
    epsilon: Spread = 0.15,
    seed: Seed = 0,
) -> Tensor:
    return weighted_sum(weights, _dropped(entries, density, epsilon, seed))


def _dropped(entries: Entries, density: float, epsilon: float, seed: int) -> Tensor:
    """(L, N, p, q)"""
    x = entries.x
    order = x.abs().argsort(dim=-1, stable=True)
    places = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x)
    # 0 for the smallest of its row, 1 for the largest
    place = torch.empty_like(x).scatter_(-1, order, places)
    stays = (density - epsilon + 2 * epsilon * place).clamp(0.0, 1.0)
    return torch.where(entries.uniform(seed) < stays, x / stays, 0.0)
