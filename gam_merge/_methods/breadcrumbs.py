"""Model Breadcrumbs (arXiv 2312.06795): drop the largest and the smallest entries, then sum.

Entries are ranked within the whole matrix, as in mergekit. The paper's code ranks them within each
row.
"""

from typing import Annotated

from torch import Tensor

from gam_merge._deltas.core import weighted_sum
from gam_merge._methods._entries import Density, Entries, Scope
from gam_merge._methods._rule import rule
from gam_merge._methods._schema import Range


@rule(
    "entries",
    "breadcrumbs",
    summary="drop outliers and small entries of each adapter, then sum",
    reference="mergekit `breadcrumbs`, after arXiv 2312.06795 (ECCV 2024)",
    use="where single entries stick out",
    avoid="for LoRA in general: there is no published gain; in small spaces the outliers are the "
    "update",
    normalize=False,
    breaks={
        "identity": "entries of a single adapter are dropped too",
        "equal": "N equal deltas add up to N times one of them",
    },
)
def breadcrumbs(
    entries: Entries,
    weights: Tensor,
    *,
    density: Density = 0.9,
    gamma: Annotated[
        float, Range(0, 1), "share of the entries that is dropped as outliers, the largest first"
    ] = 0.01,
    scope: Scope = "module",
) -> Tensor:
    gamma = min(gamma, 1 - density)
    size = entries.x.abs()
    outliers = size >= entries.threshold(gamma, scope, 0)
    large = size >= entries.threshold(gamma + density, scope, 1)
    return weighted_sum(weights, entries.x * (large & ~outliers))
