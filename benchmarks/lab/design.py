"""The measurements of the lab, their order and their cost.

A cell is a kind of set, a regime and a seed. A unit of work is one pass over one cell. Units are
ordered so that whatever is finished at any moment is a balanced subset: all cells of a seed before
those of the next one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

Kind = Literal["specialists", "same goal", "preferences"]
Regime = Literal["shared", "separate"]
Pass = Literal["main", "others", "plane", "overlap", "tuned", "rank", "joint", "sizes"]

REGIMES: tuple[Regime, ...] = ("shared", "separate")
FAMILIES = ("addition", "sorting", "spelling", "backwards", "capitals", "largest")
RANK = 8  # of every adapter
GRID = (0.5, 0.75, 1.0, 1.5, 2.0)  # |merged| over the mean of |delta_i|, for the tuned scale

# label: method of gam_merge, its parameters. At four adapters of rank 8 iso_cts(0.875) has one
# direction per adapter of its own, as iso_cts by default when it was measured: it rounded down
# then, and has two there now.
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mean": ("mean", {}),
    "gam": ("gam", {}),
    "gam, mean anchor": ("gam", {"anchor": "mean"}),
    "ties@core": ("ties@core", {}),
    "ties@knots": ("ties@knots", {}),
    "ctm": ("ctm", {}),
    "iso_c": ("iso_c", {}),
    "iso_cts(0.875)": ("iso_cts", {"fraction": 0.875}),
    "tsvm": ("tsvm", {}),
    "consensus(-0.25)": ("consensus", {"p": -0.25}),
}
OTHERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dc_merge": ("dc_merge", {}),
    "pico+mean": ("pico+mean", {}),
    "frechet": ("frechet", {}),
}
# Points (p, q) of consensus at the norm of the adapters: at its own scale p < 0 and q < 1 lengthen
# the result, too, and length alone moves the NLL. (0, 1) is the mean there, (-0.5, 1) is TSV-M
# apart from the floor. q = 0 was dropped after two sets: it was Iso-C, which is (0, 0), for any p.
PLANE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    f"consensus({p}, {q})": ("consensus", {"p": p, "q": q})
    for p, q in product((-0.5, -0.25, 0, 0.25), (0.5, 1))
}
PLANE_AT_OWN = ("consensus(-0.5, 1)", "consensus(-0.25, 1)", "consensus(0, 1)")  # at own scale, too
# p = -(1 - overlap U above chance) / 2, of each module or of the whole set: TSV-M if the adapters
# share no more than by chance, the mean if they share everything.
OF_MODULE, OF_SET = "consensus, p of each module", "consensus, p of the set"
BY_OVERLAP: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    OF_MODULE: ("consensus", {}),
    OF_SET: ("consensus", {}),
}
EVERY = {**METHODS, **OTHERS, **PLANE, **BY_OVERLAP}
# validation questions per family that may choose a point of the plane; each list begins the next
FEW = (1, 4, 16)
# also at the rank of one adapter; gam and ctm have that rank anyhow
CUT = ("mean", "iso_c", "tsvm", "consensus(-0.25)")
AT_SIZES = ("mean", "gam", "consensus(-0.25)")  # also for sets of 2 and 6


@dataclass(frozen=True)
class Settings:
    """The size of the lab. The committed results come from the defaults."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    kinds: tuple[Kind, ...] = ("specialists", "same goal", "preferences")
    passes: tuple[Pass, ...] = (
        "main",
        "others",
        "plane",
        "overlap",
        "tuned",
        "rank",
        "joint",
        "sizes",
    )
    methods: tuple[str, ...] = tuple(METHODS)
    size: int = 4  # adapters per set
    steps: int = 40  # of 16 pairs, for one adapter
    test_items: int = 32  # per family
    validation_items: int = 16
    weak_steps: int = 20  # of the model whose answers are preferred
    preference_steps: int = 10  # of 8 preference pairs, for one adapter
    preference_items: int = 24  # questions per family, for the pairs


QUICK = Settings(
    seeds=(0,),
    passes=("main", "tuned"),
    methods=("mean", "gam", "consensus(-0.25)"),
    size=2,
    steps=12,
    test_items=16,
    validation_items=8,
    weak_steps=12,
    preference_steps=8,
    preference_items=16,
)

# CPU seconds on one of two busy AMD EPYC cores, measured, for the plan
SECONDS = {
    "step": 1.0,
    "batch": 0.6,
    "merge": 1.0,
    "frechet": 11.0,
    "preference step": 5.5,
    "answer": 0.15,
}


@dataclass(frozen=True)
class Cell:
    """One set of adapters: ``families(size)`` are its tasks, adapter i starts at ``init(i)``."""

    kind: Kind
    regime: Regime
    seed: int

    def families(self, size: int) -> tuple[str, ...]:
        """Return the tasks, rotated so that six seeds use every family equally often."""
        return tuple(FAMILIES[(self.seed + i) % len(FAMILIES)] for i in range(size))

    def init(self, index: int) -> int:
        """Return the seed of the initial factors: one for all, or one each.

        Adapter 0 is the same in both regimes.
        """
        return 100 * self.seed + (index if self.regime == "separate" else 0)


@dataclass(frozen=True)
class Unit:
    """One pass over one cell."""

    what: Pass
    cell: Cell


def units(settings: Settings) -> list[Unit]:
    """Return all work in order: three seeds through every pass, then the other seeds."""
    work: list[Unit] = []
    for seeds in (settings.seeds[:3], settings.seeds[3:]):
        for what, seed, kind, regime in product(settings.passes, seeds, settings.kinds, REGIMES):
            if _applies(what, kind, regime):
                work.append(Unit(what, Cell(kind, regime, seed)))
    return work


def _applies(what: Pass, kind: Kind, regime: Regime) -> bool:
    if what == "joint":  # one adapter on the data of all, whatever the regime
        return kind == "specialists" and regime == "shared"
    return what != "sizes" or (kind == "specialists" and regime == "separate")


def training(cell: Cell, settings: Settings) -> float:
    """Return an upper bound of the CPU seconds for the adapters of a set: sets share adapters."""
    size = settings.size
    if cell.kind == "preferences":
        steps = (
            size * settings.preference_steps * SECONDS["preference step"]
            + settings.weak_steps * SECONDS["step"]
        )
        return steps + (size + 1) * size * settings.preference_items * SECONDS["answer"]
    return size * settings.steps * SECONDS["step"]


def cost(unit: Unit, settings: Settings) -> float:
    """Return the CPU seconds of a unit besides the training of its set."""
    size, more = settings.size, 6 - settings.size  # more: adapters of the largest of the sizes
    test = size * -(-settings.test_items // 16) * SECONDS["batch"]
    validation = size * -(-settings.validation_items // 16) * SECONDS["batch"]
    few = sum(size * -(-most // 16) * SECONDS["batch"] for most in FEW)
    return {
        "main": (size + 1) * test + 2 * len(settings.methods) * (SECONDS["merge"] + test),
        "others": 2 * (len(OTHERS) * (SECONDS["merge"] + test) + SECONDS["frechet"]),
        "plane": (len(PLANE) + len(PLANE_AT_OWN)) * (SECONDS["merge"] + test + few),
        "overlap": 2 * len(BY_OVERLAP) * (SECONDS["merge"] + test),
        "tuned": len(settings.methods) * (SECONDS["merge"] + test + len(GRID) * validation),
        "rank": 2 * len(CUT) * (SECONDS["merge"] + test),
        "joint": size * settings.steps * SECONDS["step"] + test,
        "sizes": more * settings.steps * SECONDS["step"]
        + 4 * len(AT_SIZES) * (SECONDS["merge"] + test),
    }[unit.what]
