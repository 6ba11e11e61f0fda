"""DARE (arXiv 2311.03099): drop entries at random, rescale the rest to keep their mean, then merge.

x_i <- m_i * x_i / density,    m_i = 1 with probability ``density``
"""

import torch
from torch import Tensor

from gam_merge._deltas.core import weighted_sum
from gam_merge._methods._entries import Density, Entries, Seed
from gam_merge._methods._rule import rule
from gam_merge._methods.ties import Election, elect

_BREAKS = {
    "identity": "entries of a single adapter are dropped at random",
    "equal": "different entries are dropped from each adapter",
}


@rule(
    "entries",
    "dare",
    summary="drop entries at random and rescale the rest, then sum: task arithmetic plus noise",
    reference="arXiv 2311.03099 (ICML 2024)",
    use="as a control: on average it is the sum of the deltas; try several seeds",
    avoid="where one good merge is wanted: only noise distinguishes it from `sum`",
    normalize=False,
    breaks=_BREAKS,
)
def dare(entries: Entries, weights: Tensor, *, density: Density = 0.9, seed: Seed = 0) -> Tensor:
    return weighted_sum(weights, _dropped(entries, density, seed))


@rule(
    "entries",
    "dare_ties",
    summary="drop entries at random and rescale the rest, then elect signs and average like `ties`",
    reference="arXiv 2311.03099 (ICML 2024) with the election of arXiv 2306.01708",
    use="at the rank of one adapter, in the space @ctm; try several seeds",
    avoid="where results must not depend on a seed",
    breaks=_BREAKS,
)
def dare_ties(
    entries: Entries,
    weights: Tensor,
    *,
    density: Density = 0.9,
    sign: Election = "weighted",
    seed: Seed = 0,
) -> Tensor:
    return elect(_dropped(entries, density, seed), weights, sign)


def _dropped(entries: Entries, density: float, seed: int) -> Tensor:
    """(L, N, p, q), all zero at density 0."""
    stays = entries.uniform(seed) < density
    return entries.x * stays / max(density, torch.finfo(torch.float64).tiny)
