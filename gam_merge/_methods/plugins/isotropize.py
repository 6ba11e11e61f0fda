"""Isotropize: all singular values of a merge set to their mean, as Iso-C does with the sum.

    merged = U S V^T,    merged <- mean(s) U V^T

Over the non-zero singular values, after any rule in any space. ``tsvm+isotropize`` is the best
variant that the paper on core space publishes, ``sum+isotropize`` is ``iso_c``.
"""

from torch import Tensor

from gam_merge._deltas.core import flat
from gam_merge._methods._rule import plugin


@plugin(
    "post",
    "isotropize",
    summary="set all non-zero singular values of the result to their mean",
    reference="arXiv 2502.04959 (ICML 2025); after other rules arXiv 2509.17786 (NeurIPS 2025)",
    use="after sums of specialists, and after `tsvm`, uncut; tune `scale` if you can",
    avoid="when cut to the rank of one adapter; for adapters of one goal",
    breaks={
        "identity": "the spectrum of a single adapter is flattened too",
        "equal": "as for a single adapter",
    },
    on="spectrum",
)
def isotropize(s: Tensor, size: int) -> Tensor:
    return flat(s, size)
