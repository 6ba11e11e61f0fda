"""The studies: their sets, methods, scales and seeds, fixed before any row was measured.

Rule, written down with them: *GAM helps* in a study if one of its readings has less NLL than the
mean and less than the best ``consensus(p)`` of those here, all with each module at the mean norm of
its deltas, with p < 0.05 after Holm's correction over the readings, and if the mean at its own
scale has less NLL than the best of the single adapters, seed by seed. A difference of margins on
held-out preferences is reported next to it and decides nothing.

Rule of the search: of the regimens of the student's copies the one is taken whose single deltas
gain the most NLL over the student on the validation questions of ``SEARCHED``, on average over
pairs and seeds, whether that is a gain or not. It is judged on the test questions of ``JUDGES``.
*Deltas of damaged copies help* if the single deltas, on average over the pairs, or a merge has less
NLL than the student there, with p < 0.05 after Holm's correction over all of these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from benchmarks.lab.design import FAMILIES, Cell, Regime
from benchmarks.lab.studies.regimen import CHOSEN, GRID, ITEMS, Regimen
from benchmarks.lab.studies.tune import Tuning

Scale = Literal["own", "norm", "tuned"]
Noise = Literal["labels", "examples"]
Part = Literal["validation", "test"]
Method = tuple[str, Mapping[str, Any]]

SEEDS = (0, 1, 2, 3, 4)
SEARCHED, JUDGES = (0, 1), (2, 3, 4)  # seeds that choose a regimen, and seeds that judge it
TEST_ITEMS = 16  # per family
VALIDATION_ITEMS = 8
MARGIN_ITEMS = 4  # questions per family whose answers are the held-out preferences of every pair
LENGTHS = (1.0, 2.0, 4.0)  # |merged| over the mean of |delta_i|, for the tuned scale

# label: method of gam_merge, its parameters
METHODS: Mapping[str, Method] = {
    "mean": ("mean", {}),
    "sum": ("sum", {}),
    "gam": ("gam", {}),
    "gam polar": ("gam", {"orthonormalize": "polar"}),
    "gam no anchor": ("gam", {"anchor": "none"}),
    "consensus(-0.25)": ("consensus", {"p": -0.25}),
    "consensus(0)": ("consensus", {"p": 0.0}),  # the mean in other factors: the noise of a row
    "consensus(0.25)": ("consensus", {"p": 0.25}),
    "consensus(0.5)": ("consensus", {"p": 0.5}),
    "ties@knots": ("ties@knots", {}),
    "tsvm": ("tsvm", {}),
    "auto": ("auto", {}),
}
GAM = ("gam", "gam polar", "gam no anchor")  # its readings


@dataclass(frozen=True)
class Study:
    """Sets of adapters of one kind, merged by the same methods at the same scales.

    Args:
        name: names the study in rows and tables.
        methods: labels of ``METHODS``.
        scales: own; norm, each module at the mean norm of its deltas; tuned, the whole at the
            length of ``LENGTHS`` that validation questions choose.
        sizes: numbers of adapters; a smaller set is the beginning of the largest.
        tuning: optimiser of preference deltas; None for that of the lab.
        rank: rank of each adapter.
        regime: shared or separate initial factors.
        noise: what is wrong with the data of a crowd.
        regimen: how deltas of the student's damaged copies are trained.
        seeds: seeds that are run.
        part: questions that are measured.
        axes: deltas of one countable quality each.
        together: further adapters, trained on the data of all: at once, in as many steps as all
            or as one of them, or one after the other.
    """

    name: str
    methods: tuple[str, ...]
    scales: tuple[Scale, ...]
    sizes: tuple[int, ...] = (4,)
    tuning: Tuning | None = None
    rank: int = 8
    regime: Regime = "shared"
    noise: Noise | None = None
    regimen: Regimen | None = None
    seeds: tuple[int, ...] = SEEDS
    part: Part = "test"
    axes: bool = False
    together: tuple[str, ...] = ()

    def cell(self, seed: int) -> Cell:
        """Return the families and the initial factors of a seed."""
        return Cell("same goal" if self.noise else "preferences", self.regime, seed)


def _paper(objective: Literal["dpo", "orpo"]) -> Study:
    methods = tuple(label for label in METHODS if label not in ("sum", "consensus(0.5)"))
    tuning = Tuning(objective)
    name = f"paper's optimiser, {objective.upper()}"
    return Study(name, methods, ("own", "norm", "tuned"), tuning=tuning, rank=tuning.rank)


def _preferences(regime: Regime) -> Study:
    methods = ("mean", "gam", "gam polar", "consensus(-0.25)", "consensus(0.25)")
    return Study(f"preferences, {regime}", methods, ("own", "norm"), regime=regime)


def _crowd(noise: Noise, rank: int) -> Study:
    methods = ("mean", *GAM, "consensus(-0.25)", "consensus(0.25)", "consensus(0.5)", "auto")
    about = {"labels": "half the labels wrong", "examples": "16 examples"}[noise]
    name = f"crowd, {about}, r = {rank}"
    return Study(name, methods, ("own", "norm"), sizes=(4, 8), rank=rank, noise=noise)


def _axes() -> Study:
    methods = ("mean", "sum", "gam", "consensus(-0.25)", "tsvm", "ties@knots", "auto")
    tuning = Tuning(rank=16, lr=8.5e-4, steps=12, batch=8)
    together = ("joint", "joint, steps of one", "sequential")
    return Study(
        "axes", methods, ("own", "norm"), (3,), tuning, tuning.rank, axes=True, together=together
    )


def _search(regimen: Regimen) -> Study:
    """Deltas alone, on validation questions: a merge follows where they help."""
    rank = regimen.tuning.rank
    name = f"copies: {regimen.name}"
    return Study(name, (), (), (3,), rank=rank, regimen=regimen, seeds=SEARCHED, part="validation")


def _judged(regimen: Regimen) -> Study:
    methods = ("mean", "gam", "consensus(-0.25)", "tsvm", "auto")
    rank, name = regimen.tuning.rank, f"copies, judged: {regimen.name}"
    return Study(name, methods, ("own",), (3,), rank=rank, regimen=regimen, seeds=JUDGES)


STUDIES = (
    _axes(),
    _paper("dpo"),
    _crowd("labels", 8),
    _preferences("shared"),
    _paper("orpo"),
    _preferences("separate"),
    _crowd("examples", 64),
    *map(_search, GRID),
    *map(_judged, CHOSEN),
)


def number(name: str) -> int:
    """Return the number of an adapter: 1 of "single 1"."""
    return int(name.removeprefix("single "))


# CPU seconds on one of two busy threads of an AMD EPYC core, measured, for the plan
STEP, TRL_STEP, ANSWER, ANSWERS, BATCH, MERGE = 1.5, 5.0, 0.15, 35.0, 1.5, 3.0
COSTLY = 70  # a merge of this rank costs a second more, and it grows with the square


def cost(study: Study) -> float:
    """Return the CPU seconds of one seed of a study, from nothing."""
    if study.axes:
        steps = 9 * (study.tuning or Tuning()).steps  # alone, jointly and one after the other
        return steps * 2 * STEP + 24 * ANSWERS + 96 * ANSWER
    families = len(FAMILIES) if study.regimen else 4
    items = VALIDATION_ITEMS if study.part == "validation" else TEST_ITEMS
    margins = 0 if study.noise or study.regimen else 5 * MARGIN_ITEMS * 4  # of one chosen list
    row = (families * items + margins) / 16 * BATCH
    evaluation = 0.0
    for size, scale in product(study.sizes, study.scales):
        merge = MERGE + (size * study.rank / COSTLY) ** 2
        tuned = len(LENGTHS) * VALIDATION_ITEMS * families / 16 * BATCH
        of_scale = merge + row + (tuned if scale == "tuned" else 0.0)
        evaluation += len(study.methods) * of_scale
    return evaluation + max(study.sizes) * (_training(study) + row)


def _training(study: Study) -> float:
    if study.regimen:
        return (study.regimen.tuning.steps + ITEMS * len(FAMILIES) / 8) * STEP
    if study.noise:
        return 24 * STEP
    if study.tuning:
        return study.tuning.steps * STEP + 256 * ANSWER
    return 10 * TRL_STEP + 112 * ANSWER


@dataclass(frozen=True)
class Unit:
    """One seed of one study."""

    study: Study
    seed: int


def units(names: list[str], seeds: int | None) -> list[Unit]:
    """Return the work in order: every study of a seed before the next seed.

    Args:
        names: names of studies; none for all.
        seeds: number of seeds, from the first; None for all.
    """
    work: list[Unit] = []
    for seed, study in product(SEEDS[:seeds], STUDIES):
        if seed in study.seeds and (not names or study.name in names):
            work.append(Unit(study, seed))
    return work
