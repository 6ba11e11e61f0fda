"""The default: GAM where the adapters share their directions, else a mild consensus.

GAM is the mean with everything but the most shared directions removed (docs/gam.md), so it can gain
only where what it removes is noise. Its premise is that the adapters share nearly all of what they
do. The share of the mean that is left after it tells whether they do:

    kept = |gam| / |mean|,    both over all modules that were looked at, gam without an anchor

From ``KEPT`` on GAM is taken, below it consensus(p = -0.25); both at the largest rank of the
sources. The evidence is benchmarks/lab, five seeds of six kinds of sets of four adapters of
SmolLM2-135M; a test holds the figures against its rows:

    kept            sets  NLL of gam above the mean  NLL of consensus(-0.25) at rank r below gam
    0.992 to 0.995     5  0.004 to 0.010             0.004 to 0.021
    0.356 to 0.915    25  0.04 to 0.94               0.04 to 0.98

There kept is that of GAM anchored at an adapter; anchored at the running mean, which no order
changes, it is 0.995 and more in the same five sets, and at most 0.929 in the others.
No set lies between 0.915 and 0.992: the threshold is a choice within that gap, not a measured
crossing. Consensus was below GAM in every set, those above the threshold included: there both are
within 0.011 nats of the mean.
"""

from dataclasses import dataclass
from math import floor, fsum, sqrt

from torch import Tensor

from gam_merge._deltas.bucket import Bucket
from gam_merge._methods._gram import inner_products
from gam_merge._methods._rule import Choice, rule
from gam_merge._methods.gam import gam

KEPT = 0.95  # the least share of the mean at which gam is taken
P = -0.25  # of consensus
_CANCELLED = 1e-12  # a smaller share of the squared norms in the mean's is rounding
EVIDENCE = (
    "measured on six kinds of adapters of SmolLM2-135M: a hint, not a law; a few labelled "
    "questions choose better (gam-merge search)"
)


@dataclass(frozen=True)
class Premise:
    """|gam|^2, |mean|^2 and the sum of |w_i delta_i|^2 of each module that two adapters change."""

    gam: tuple[float, ...]
    mean: tuple[float, ...]
    parts: tuple[float, ...]

    def __add__(self, other: "Premise") -> "Premise":
        return Premise(self.gam + other.gam, self.mean + other.mean, self.parts + other.parts)

    @property
    def kept(self) -> float | None:
        """|gam| / |mean| over all modules: None if there is no mean, or rounding alone.

        The sums are exact, so the order of the modules does not matter.
        """
        mean = fsum(self.mean)
        return sqrt(fsum(self.gam) / mean) if mean > _CANCELLED * fsum(self.parts) else None


def premise(bucket: Bucket, weights: Tensor) -> Premise:
    """Look at a bucket. weights: (L, N)."""
    if len(bucket.deltas) < 2:
        return Premise((), (), ())
    weights = weights / weights.sum(-1, keepdim=True)
    merged = gam.function(bucket, weights, anchor="none")
    inner = weights.unsqueeze(-1) * inner_products(bucket) * weights.unsqueeze(-2)  # (L, N, N)
    mean = inner.sum((-2, -1)).clamp(min=0.0)  # (L,)
    parts = inner.diagonal(dim1=-2, dim2=-1).sum(-1)  # (L,)
    gam_squared = merged.norm(bucket).square()
    return Premise(tuple(gam_squared.tolist()), tuple(mean.tolist()), tuple(parts.tolist()))


@rule(
    "choice",
    "auto",
    summary="gam without an anchor where it keeps at least 95 % of the norm of the mean, else "
    "consensus with p=-0.25",
    reference="this project, docs/gam.md",
    use="by default: one of the two is right for most adapters, and it says which it took, and why",
    avoid="if you know better, or can measure: a few labelled questions choose best",
    rank="largest",
    composes=False,
    survey=premise,
)
def auto(seen: Premise | None) -> Choice:
    kept = None if seen is None else seen.kept
    if kept is None:
        reason = "no module is changed by two adapters: there is nothing to filter"
        if seen is not None and any(seen.parts):
            reason = "the adapters cancel: they have no mean that gam could filter"
        return Choice("auto", "gam", {"anchor": "none"}, reason)
    figures = {"gam_to_mean": kept}
    if kept >= KEPT:
        reason = f"the adapters share their directions: it keeps {_percent(kept)} of the mean"
        return Choice("auto", "gam", {"anchor": "none"}, reason, figures)
    reason = (
        "the adapters share few directions: gam anchor=none would keep "
        f"{_percent(kept)} of the mean"
    )
    otherwise = "-m gam for the paper's rule"
    return Choice("auto", "consensus", {"p": P}, reason, figures, otherwise)


def _percent(share: float) -> str:
    """Return whole percents, rounded down: below the bar is not written as the bar."""
    return f"{floor(100 * share)} %"
