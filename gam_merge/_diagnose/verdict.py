"""The verdict of a comparison in words, and the form of its advice."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gam_merge._diagnose.measures import Measures


@dataclass(frozen=True)
class Recommendation:
    """A method for a set of adapters, with the reason and the evidence behind it.

    Example:
        >>> adapters = ["examples/adapters/addition", "examples/adapters/sorting"]
        >>> advice = gm.compare(adapters).recommendation
        >>> advice.method, advice.params
        ('consensus', {'p': -0.25})
    """

    method: str
    params: Mapping[str, Any]
    reason: str
    evidence: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


_OPPOSED = -0.2  # mean cosine of two deltas
_UNEQUAL = 3.0  # largest norm / smallest norm
_SHORT = 0.8  # norm of the mean / norm of the adapters


def verdict(total: Measures) -> str:
    """Describe the adapters in a few plain sentences."""
    if np.isnan(total.overlap_u):
        return "No module is changed by more than one adapter: a merge puts them side by side."
    sentences = [
        f"{_initialisation(total)}: the overlap of row spaces is {total.overlap_v:.2g} "
        f"(chance {total.chance_v:.2g}), that of column spaces {total.overlap_u:.2g} "
        f"(chance {total.chance_u:.2g}).",
        f"The mean cosine of two deltas is {total.cosine:.2g}.",
    ]
    norms = total.norms[total.norms > 0]
    if total.mean_norm < _SHORT * norms.mean():
        sentences.append(
            f"Their mean has {100 * total.mean_norm / norms.mean():.0f} % of their norm: if they "
            "were trained briefly, that matters more than the method, and -p rescale=norm restores "
            "it; if they overfit a few examples, the shorter mean is better."
        )
    if total.cosine < _OPPOSED:
        sentences.append("The deltas oppose each other: a mean cancels much of each.")
    largest, smallest = norms.max(), norms.min()
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
