"""Sets of adapters of the studies: preference deltas, and the noisy crowd."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.lab.adapters import Pairs, once, pairs
from benchmarks.lab.design import Settings
from benchmarks.lab.preferences import WEAKER, PreferenceSet
from benchmarks.lab.studies.design import MARGIN_ITEMS, Study
from benchmarks.lab.studies.tune import Preference, tuned
from examples.smollm import train, write

CROWD_STEPS = 24  # of 16 pairs
FAMILIES = 4
PREFERENCE_ITEMS = 48  # per family, for the paper's optimiser: more steps need more pairs


class AdapterSet(Protocol):
    """Where adapters and held-out preferences of one seed of a study come from."""

    def adapter(self, index: int) -> Path:
        """Return the directory of an adapter, which is trained if needed."""
        ...

    def held_out(self) -> Mapping[str, list[Preference]]:
        """Return preferences of every pair of models to questions that no adapter has seen."""
        ...


def adapter_set(
    study: Study, seed: int, base: Any, tokenizer: Any, folder: Path, settings: Settings
) -> AdapterSet:
    """Return the set of one seed of a study."""
    if study.noise:
        return Crowd(study, seed, base, tokenizer, folder, settings)
    if study.tuning:
        settings = replace(settings, preference_items=PREFERENCE_ITEMS)
    origin = PreferenceSet(study.cell(seed), FAMILIES, base, tokenizer, folder, settings)
    return Deltas(study, origin)


@dataclass(frozen=True)
class Deltas:
    """Preference deltas of the lab's pairs: by its own optimiser, or by that of the study."""

    study: Study
    origin: PreferenceSet

    def adapter(self, index: int) -> Path:
        origin, tuning = self.origin, self.study.tuning
        if tuning is None:
            return origin.adapter(index)
        who, init = tuple(WEAKER)[index], origin.cell.init(index)

        def make(out: Path) -> None:
            pairs = [Preference(*row) for row in origin.preferences(who)]
            model = tuned(origin.base, origin.tokenizer, pairs, tuning, init=init)
            write(model, out, torch.float32)  # of the factors' moves bfloat16 would keep a part
            model.unload()

        about = f"{tuning.objective}-r{tuning.rank}-lr{tuning.lr}-steps{tuning.steps}"
        return once(origin.cache / f"over-{who}-{origin.name}-init{init}-{about}", make)

    def held_out(self) -> Mapping[str, list[Preference]]:
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
    settings: Settings

    def adapter(self, index: int) -> Path:
        study = self.study
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
        name = f"crowd-{study.noise}{index}-r{study.rank}-seed{self.seed}-steps{CROWD_STEPS}"
        return once(self.folder / name, make)

    def _training(self, index: int) -> Pairs:
        """Return the pairs of one adapter: a share of every family that no other adapter has."""
        count = max(self.study.sizes)
        mixture: Pairs = []
        for family in self.study.cell(self.seed).families(FAMILIES):
            lists = pairs(self.tokenizer, family, self.seed, self.settings)
            share = lists[2][index::count]
            mixture += share[: 16 // FAMILIES] if self.study.noise == "examples" else share
        rng = random.Random(100 * self.seed + index)
        rng.shuffle(mixture)
        return half_wrong(mixture, rng) if self.study.noise == "labels" else mixture

    def held_out(self) -> Mapping[str, list[Preference]]:
        return {}


def half_wrong(right: Pairs, rng: random.Random) -> Pairs:
    """Return pairs of which half have the answer of another one of them."""
    chosen = rng.sample(range(len(right)), len(right) // 2)
    mixture = list(right)
    for i, other in zip(chosen, chosen[1:] + chosen[:1], strict=True):
        mixture[i] = (right[i][0], right[other][1])
    return mixture
