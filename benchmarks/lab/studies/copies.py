"""Deltas of the student's own damaged copies, all weaker than the student, on all six families."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ask import generated
from models import weaken
from pairs import quality

from benchmarks.lab.adapters import Pairs, once, pairs
from benchmarks.lab.design import FAMILIES, Cell, Settings
from benchmarks.lab.preferences import ASK, PROMPT
from benchmarks.lab.rows import Row
from benchmarks.lab.studies import figures
from benchmarks.lab.studies.design import Part, number
from benchmarks.lab.studies.regimen import ITEMS, Regimen
from benchmarks.lab.studies.tune import Preference, write_delta

Damage = Mapping[str, float]
PAIRS: Mapping[str, tuple[Damage, Damage]] = {  # weak and weaker
    "noise": ({"noise": 0.03}, {"noise": 0.06}),
    "depth": ({"skip": 1}, {"skip": 3}),
    "bits": ({"bits": 5.5}, {"bits": 4}),  # with 5 nearly all answers are empty
}


@dataclass(frozen=True)
class Copies:
    """The adapters of one seed and regimen."""

    regimen: Regimen
    cell: Cell
    base: Any
    tokenizer: Any
    folder: Path

    def adapter(self, name: str) -> Path:
        """Return the directory of the adapter of one pair of copies, which is trained if needed."""
        index = number(name)
        pair, init = tuple(PAIRS)[index], self.cell.init(index)

        def make(out: Path) -> None:
            preferences = self.preferences(pair)
            tuning = self.regimen.tuning
            write_delta(out, self.base, self.tokenizer, preferences, tuning, init)

        about = f"copies-{pair}-seed{self.cell.seed}-{self.regimen.name}"
        return once(self.folder / about.replace(", ", "-").replace(" ", ""), make)

    def figures(self, model: Any, part: Part) -> Row:
        """Return NLL and accuracy by family."""
        return figures.of_tasks(model, self.tokenizer, FAMILIES, self.cell.seed, part)

    def preferences(self, pair: str) -> list[Preference]:
        """Return the pairs of different answers, filtered by quality if the regimen says so."""
        weak, weaker = (self.answers(damage) for damage in PAIRS[pair])
        preferences: list[Preference] = []
        for (question, right), better, worse in zip(self.training(), weak, weaker, strict=True):
            kept = quality(better, right) > quality(worse, right) or not self.regimen.filtered
            if better != worse and kept:
                preferences.append(Preference(question, better, worse))
        return preferences

    def answers(self, damage: Damage) -> list[str]:
        """Return the answers of a damaged copy."""

        def make(out: Path) -> None:
            model = copy.deepcopy(self.base)
            weaken(model, **damage)
            prompts = [PROMPT.format(question) for question, _ in self.training()]
            answers = list(generated(model, self.tokenizer, prompts, ASK))
            out.write_text(json.dumps(answers), "utf-8")

        about = "-".join(f"{name}{value:g}" for name, value in damage.items())
        file = once(self.folder / f"copies-answers-{about}-seed{self.cell.seed}.json", make)
        return list(json.loads(file.read_text("utf-8")))

    def training(self) -> Pairs:
        """Return the training questions of all families, with the right answers."""
        mixture: Pairs = []
        for family in FAMILIES:
            mixture += pairs(self.tokenizer, family, self.cell.seed, Settings())[2][:ITEMS]
        return mixture
