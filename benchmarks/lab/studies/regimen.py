"""How deltas of the student's damaged copies are trained: the grid that is searched."""

from dataclasses import dataclass
from typing import Any

from benchmarks.lab.studies.tune import Tuning

ITEMS = 24  # questions per family


@dataclass(frozen=True)
class Regimen:
    """How deltas are trained.

    Args:
        tuning: the optimiser.
        filtered: keep only pairs whose chosen answer is nearer to the right one.
    """

    tuning: Tuning
    filtered: bool

    @property
    def name(self) -> str:
        """All that it depends on."""
        t = self.tuning
        pairs = "filtered" if self.filtered else "all pairs"
        return f"{t.objective}, lr {t.lr:g}, r {t.rank}, beta {t.beta:g}, {t.steps} steps, {pairs}"


def _regimen(
    objective: Any, lr: float, filtered: bool, *, rank: int = 8, beta: float = 0.1, steps: int = 24
) -> Regimen:
    tuning = Tuning(objective, rank=rank, lr=lr, steps=steps, beta=beta)
    return Regimen(tuning, filtered)


# searched on the validation questions of two seeds
GRID = (
    _regimen("dpo", 1e-6, False),
    _regimen("dpo", 1e-5, False),
    _regimen("dpo", 5e-5, False),
    _regimen("dpo", 2e-4, False),
    _regimen("dpo", 5e-5, True),
    _regimen("dpo", 2e-4, True),
    _regimen("dpo", 2e-4, True, beta=0.5),
    _regimen("dpo", 2e-4, True, rank=64),
    _regimen("orpo", 5e-5, False),
    _regimen("orpo", 2e-4, False),
    _regimen("orpo", 5e-5, True),
    _regimen("orpo", 2e-4, True),
    _regimen("orpo", 2e-4, True, steps=48),
)
# what the search took, by the rule of design.py
CHOSEN: tuple[Regimen, ...] = (_regimen("orpo", 2e-4, True),)
