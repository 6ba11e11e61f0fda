"""The verdict of a comparison in words, and the method that suits these adapters.

The regimes are data, so that measurements can replace them. Today's rest on benchmarks/lab: five
seeds of four LoRA adapters of rank 8 on SmolLM2-135M-Instruct, mean NLL over four tasks. A test
holds them against its rows.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gam_merge._diagnose.measures import Measures


@dataclass(frozen=True)
class Candidate:
    """A method with its parameters."""

    method: str
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Regime:
    """Sets of adapters whose column spaces overlap by at most ``max_overlap`` above chance."""

    max_overlap: float
    kind: str
    best: Candidate
    reason: str


_EVIDENCE = "measured on five seeds of SmolLM2-135M, four adapters of rank 8: a hint, not a law"
_MILD = Candidate("consensus", {"p": -0.25})
# Measured overlaps above chance: specialists 0.03 to 0.07, preferences 0.06 to 0.11, one goal 0.20
# to 0.39. The ranges of the first two overlap.
REGIMES = (
    Regime(
        max_overlap=0.1,
        kind="specialists",
        best=_MILD,
        reason=(
            "the adapters change different directions, as specialists and most preference deltas "
            "do: a mean that slightly boosts private directions beat the plain mean in almost "
            "every such set; for specialists, tsvm at the norm of the adapters "
            "(-p rescale=norm) beat both means where the adapters started from separate factors, "
            "but clearly lost in two sets with shared factors; gam, which keeps what all adapters "
            "share, was worst on average"
        ),
    ),
    Regime(
        max_overlap=0.15,
        kind="in between",
        best=_MILD,
        reason=(
            "the overlap lies between that of specialists and that of adapters with one goal, as "
            "it does for some preference deltas: a mean that slightly boosts private directions "
            "beat the plain mean in every such set, and did even better at the norm of the "
            "adapters (-p rescale=norm)"
        ),
    ),
    Regime(
        max_overlap=1.0,
        kind="one goal",
        best=_MILD,
        reason=(
            "the adapters change the same directions: a mean that slightly boosts private "
            "directions beat every single adapter; gam came close where the row spaces are shared "
            "too; methods that flatten the spectrum lost"
        ),
    ),
)


@dataclass(frozen=True)
class Recommendation:
    """A method for a set of adapters, with the reason and the evidence behind it.

    Example:
        >>> adapters = ["examples/adapters/addition", "examples/adapters/sorting"]
        >>> advice = gm.compare(adapters).recommendation
        >>> advice.kind, advice.method, advice.params
        ('specialists', 'consensus', {'p': -0.25})
    """

    kind: str
    method: str
    params: Mapping[str, Any]
    reason: str
    evidence: str = _EVIDENCE

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


_OPPOSED = -0.2  # mean cosine of two deltas
_UNEQUAL = 3.0  # largest norm / smallest norm


def recommend(total: Measures) -> Recommendation:
    """Recommend the method of the first regime that fits."""
    overlap = np.nan_to_num(total.above_chance_u)  # 0 if no two adapters have a module in common
    regime = next((r for r in REGIMES if overlap <= r.max_overlap), REGIMES[-1])
    return Recommendation(regime.kind, regime.best.method, regime.best.params, regime.reason)


def verdict(total: Measures) -> str:
    """Describe the adapters in a few plain sentences."""
    if np.isnan(total.overlap_u):
        return "No module is changed by more than one adapter: a merge puts them side by side."
    sentences = [
        f"{_initialisation(total)}: the overlap of row spaces is {total.overlap_v:.2g} "
        f"(chance {total.chance_v:.2g}), that of column spaces {total.overlap_u:.2g} "
        f"(chance {total.chance_u:.2g}).",
        f"The mean cosine of two deltas is {total.cosine:.2g}; gam keeps {total.gam_to_mean:.0%} "
        "of the norm of the mean.",
    ]
    if total.cosine < _OPPOSED:
        sentences.append("The deltas oppose each other: a mean cancels much of each.")
    largest, smallest = total.norms.max(), total.norms[total.norms > 0].min()
    if largest > _UNEQUAL * smallest:
        sentences.append(
            f"Norms differ by a factor of {largest / smallest:.1f}: the largest delta dominates "
            "unless the weights compensate."
        )
    return " ".join(sentences)


def _initialisation(total: Measures) -> str:
    """Tell by the row spaces: A hardly moves in training, so they show its initial value."""
    if total.above_chance_v > 0.5:
        return "Same initialisation"
    if total.overlap_v > 2 * total.chance_v:
        return "Partly shared row spaces"
    return "Separate initialisations"
