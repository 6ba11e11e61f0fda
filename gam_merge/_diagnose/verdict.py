"""What the figures of a comparison say, in words, and which method they speak for.

The rules are data, so that measurements can replace them. Today's rest on the laboratory in benchmarks/lab: five seeds
of four LoRA adapters of rank 8 on SmolLM2-135M-Instruct, mean NLL over four tasks. A test holds them against its rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gam_merge._diagnose.measures import Measures


@dataclass(frozen=True)
class Candidate:
    """A method with its parameters."""

    method: str
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Rule:
    """Adapters whose column spaces overlap by at most ``most``, above chance, are of this ``kind``."""

    most: float
    kind: str
    best: Candidate
    reason: str


_EVIDENCE = "measured on five seeds of SmolLM2-135M, four adapters of rank 8: a hint, not a law"
_MILD = Candidate("consensus", {"p": -0.25})
# Specialists were at 0.03 to 0.07, preferences at 0.06 to 0.11, one goal at 0.20 to 0.39: the first two overlap.
RULES = (
    Rule(
        most=0.1,
        kind="specialists",
        best=_MILD,
        reason=(
            "the adapters change different directions, as specialists do and most preference deltas: a mean that "
            "lifts private directions a little beat the plain one in almost every set there; of specialists, tsvm at "
            "the norm of the adapters (-p rescale=norm) beat both where they started from separate factors and lost "
            "clearly in two sets that shared them; gam, which keeps what all share, was worst on average"
        ),
    ),
    Rule(
        most=0.15,
        kind="in between",
        best=_MILD,
        reason=(
            "between specialists and adapters of one goal, as some preference deltas are: a mean that lifts private "
            "directions a little beat the plain one in every set of these, and at the norm of the adapters "
            "(-p rescale=norm) it was better still"
        ),
    ),
    Rule(
        most=1.0,
        kind="one goal",
        best=_MILD,
        reason=(
            "the adapters change the same directions: a mean, with private directions lifted a little, beat every "
            "single adapter there; gam came close where the row spaces are shared too; flat spectra lost"
        ),
    ),
)


@dataclass(frozen=True)
class Recommendation:
    """A method for a set of adapters, why, and what that rests on."""

    kind: str
    method: str
    params: Mapping[str, Any]
    reason: str
    evidence: str = _EVIDENCE

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "kind": self.kind,
            "method": self.method,
            "params": dict(self.params),
            "reason": self.reason,
            "evidence": self.evidence,
        }


_OPPOSED = -0.2  # mean cosine of two deltas
_UNEQUAL = 3.0  # largest by smallest norm


def recommend(total: Measures) -> Recommendation:
    """By the first rule that fits."""
    shared = np.nan_to_num(
        total.above_chance_u
    )  # nothing in common if there is no module that two adapters have
    rule = next(rule for rule in RULES if shared <= rule.most or rule is RULES[-1])
    return Recommendation(rule.kind, rule.best.method, rule.best.params, rule.reason)


def verdict(total: Measures) -> str:
    """The regime of the adapters in one or two plain sentences."""
    if np.isnan(total.overlap_u):
        return "No module is changed by two of the adapters: a merge puts them side by side."
    sentences = [
        f"{_regime(total)}: row spaces overlap {total.overlap_v:.2g} (chance {total.chance_v:.2g}), column spaces "
        f"{total.overlap_u:.2g} (chance {total.chance_u:.2g}).",
        f"The mean cosine of two deltas is {total.cosine:.2g}; gam keeps {total.gam_to_mean:.0%} of the norm of "
        "the mean.",
    ]
    if total.cosine < _OPPOSED:
        sentences.append("The deltas point against each other: a mean cancels much of both.")
    largest, smallest = total.norms.max(), total.norms[total.norms > 0].min()
    if largest > _UNEQUAL * smallest:
        sentences.append(
            f"Norms differ by a factor of {largest / smallest:.1f}: the largest outweighs the others unless weights "
            "say otherwise."
        )
    return " ".join(sentences)


def _regime(total: Measures) -> str:
    """Whether the adapters grew from one LoRA initialisation: A hardly moves in training, so its row space tells."""
    if total.above_chance_v > 0.5:
        return "Same initialisation"
    if total.overlap_v > 2 * total.chance_v:
        return "Partly shared row spaces"
    return "Separate initialisations"
