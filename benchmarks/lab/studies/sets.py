"""Sets of adapters of the studies: preference deltas, and the noisy crowd."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

from benchmarks.lab.adapters import Pairs, once, pairs
from benchmarks.lab.design import Settings
from benchmarks.lab.preferences import WEAKER, PreferenceSet
from benchmarks.lab.rows import Row
from benchmarks.lab.studies import figures
from benchmarks.lab.studies.axes import Axes
from benchmarks.lab.studies.copies import Copies
from benchmarks.lab.studies.design import MARGIN_ITEMS, Part, Study, number
from benchmarks.lab.studies.tune import Preference, write_delta
from examples.smollm import train

CROWD_STEPS = 24  # of 16 pairs
FAMILIES = 4
PREFERENCE_ITEMS = 48  # per family, for the paper's optimiser: more steps need more pairs


class AdapterSet(Protocol):
    """Where the adapters of one seed of a study come from, and what is measured of a model."""

    def adapter(self, name: str) -> Path:
        """Return the directory of an adapter, which is trained if needed."""
        ...

    def figures(self, model: Any, part: Part) -> Row:
        """Return the figures of a model; those of a part of the questions, if it has parts."""
        ...


def adapter_set(study: Study, seed: int, base: Any, tokenizer: Any, *, folder: Path) -> AdapterSet:
    """Return the set of one seed of a study; adapters and answers are kept in a folder."""
    settings = Settings()
    if study.noise:
        return Crowd(study, seed, base, tokenizer, folder)
    if study.axes:
        return Axes(study, seed, base, tokenizer, folder)
    if study.regimen:
        return Copies(study.regimen, study.cell(seed), base, tokenizer, folder)
    if study.tuning:
        settings = replace(settings, preference_items=PREFERENCE_ITEMS)
    origin = PreferenceSet(study.cell(seed), FAMILIES, base, tokenizer, folder, settings)
    return Deltas(study, origin)


@dataclass(frozen=True)
class Deltas:
    """Preference deltas of the lab's pairs: by its own optimiser, or by that of the study."""

    study: Study
    origin: PreferenceSet

    def adapter(self, name: str) -> Path:
        index, origin, tuning = number(name), self.origin, self.study.tuning
        if tuning is None:
            return origin.adapter(index)
        who, init = tuple(WEAKER)[index], origin.cell.init(index)

        def make(out: Path) -> None:
            pairs = [Preference(*row) for row in origin.preferences(who)]
            write_delta(out, origin.base, origin.tokenizer, pairs, tuning, init)

        about = f"{tuning.objective}-r{tuning.rank}-steps{tuning.steps}-batch{tuning.batch}"
        return once(origin.cache / f"over-{who}-{origin.name}-init{init}-{about}", make)

    def figures(self, model: Any, part: Part) -> Row:
        origin = self.origin
        families, seed = origin.cell.families(FAMILIES), origin.cell.seed
        held_out = self._held_out()
        return figures.of_deltas(model, origin.tokenizer, families, seed, part, held_out)

    def _held_out(self) -> Mapping[str, list[Preference]]:
        """Return preferences of every pair of models to questions that no adapter has seen."""
        held_out: dict[str, list[Preference]] = {}
        for who in WEAKER:
            rows = self.origin.preferences(who, held_out=MARGIN_ITEMS)
            held_out[who] = [Preference(*row) for row in rows]
        return held_out


@dataclass(frozen=True)
class Crowd:
    """Adapters of one goal whose data is bad in a way of their own: GAM's best case.

    labels: half of the answers of each adapter's pairs are swapped among themselves. examples: each
    adapter has sixteen pairs.
    """

    study: Study
    seed: int
    base: Any
    tokenizer: Any
    folder: Path

    @property
    def _families(self) -> tuple[str, ...]:
        return self.study.cell(self.seed).families(FAMILIES)

    def adapter(self, name: str) -> Path:
        study, index = self.study, number(name)
        init = study.cell(self.seed).init(index)
        make = partial(
            train,
            self.base,
            self.tokenizer,
            cycle(self._training(index)),
            steps=CROWD_STEPS,
            seed=init,
            rank=study.rank,
        )
        about = f"{study.noise}{index}-r{study.rank}-seed{self.seed}-steps{CROWD_STEPS}"
        return once(self.folder / f"crowd-{about}", make)

    def figures(self, model: Any, part: Part) -> Row:
        return figures.of_tasks(model, self.tokenizer, self._families, self.seed, part)

    def _training(self, index: int) -> Pairs:
        """Return the pairs of one adapter: a share of every family that no other adapter has."""
        count = max(self.study.sizes)
        mixture: Pairs = []
        for family in self._families:
            lists = pairs(self.tokenizer, family, self.seed, Settings())
            share = lists[2][index::count]
            mixture += share[: 16 // FAMILIES] if self.study.noise == "examples" else share
        rng = random.Random(100 * self.seed + index)
        rng.shuffle(mixture)
        return half_wrong(mixture, rng) if self.study.noise == "labels" else mixture


def half_wrong(right: Pairs, rng: random.Random) -> Pairs:
    """Return pairs of which half have the answer of another one of them."""
    chosen = rng.sample(range(len(right)), len(right) // 2)
    mixture = list(right)
    for i, other in zip(chosen, chosen[1:] + chosen[:1], strict=True):
        mixture[i] = (right[i][0], right[other][1])
    return mixture
