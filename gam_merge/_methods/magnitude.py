"""Magnitude pruning (PEFT's ``magnitude_prune``): the largest entries of each adapter, summed."""

from torch import Tensor

from gam_merge._deltas.core import weighted_sum
from gam_merge._methods._entries import Density, Entries, Scope
from gam_merge._methods._rule import rule

_DROPPED = "small entries of a single adapter are dropped"


@rule(
    "entries",
    "magnitude",
    summary="keep the largest entries of each adapter, then sum",
    reference="PEFT `magnitude_prune`",
    use="as a control for `ties`: the same trimming, without an election of signs",
    avoid="otherwise",
    normalize=False,
    breaks={
        "identity@knots": _DROPPED,
        "identity@factor": _DROPPED,
        "identity@delta": _DROPPED,
        "equal": "N equal deltas add up to N times one of them",
    },
)
def magnitude(
    entries: Entries, weights: Tensor, *, density: Density = 0.5, scope: Scope = "module"
) -> Tensor:
    kept = entries.x.abs() >= entries.threshold(density, scope, 1)
    return weighted_sum(weights, entries.x * kept)
