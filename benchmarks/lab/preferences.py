"""Preference deltas: the base tuned by DPO to prefer a weak model's answers to a weaker one's.

The weak model is the base with an adapter trained for a few steps on the families of the set. The
weaker ones are copies of it, each damaged in another way, and the base itself; the adapters of a
set differ in these. Damage and training are those of examples/pda.
"""

import copy
import json
import random
from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ask import generated
from models import weaken
from train_delta import options, trainer

from benchmarks.lab.adapters import Pairs, once, pairs
from benchmarks.lab.design import RANK, Cell, Settings
from examples.smollm import train, write

PROMPT = "Question: {}\nAnswer:"
ASK = Namespace(plain=True, batch=80, max_new_tokens=20)
WEAKER: dict[str, dict[str, float]] = {
    "noise": {"noise": 0.1},
    "layers": {"skip": 2},
    "bits": {"bits": 4},
    "untrained": {},
}
TRAINING = {
    "objective": "dpo",
    "lr": 4e-4,
    "batch": 8,
    "micro_batch": 8,
    "beta": 0.1,
    "max_length": 96,
}


def trained(
    cell: Cell, index: int, size: int, base: Any, tokenizer: Any, cache: Path, settings: Settings
) -> Path:
    """Return the directory of adapter ``index``, trained against the weaker copy of that number."""
    return PreferenceSet(cell, size, base, tokenizer, cache, settings).adapter(index)


@dataclass(frozen=True)
class PreferenceSet:
    """The origin of the adapters of a set. Weak model and answers are the same in both regimes."""

    cell: Cell
    size: int
    base: Any
    tokenizer: Any
    cache: Path
    settings: Settings

    @property
    def name(self) -> str:
        items = self.settings.preference_items
        return f"of{self.size}-seed{self.cell.seed}-steps{self.settings.weak_steps}-items{items}"

    def adapter(self, index: int) -> Path:
        """Return the adapter of the base tuned on the pairs in which the answers differ."""
        who, init = tuple(WEAKER)[index], self.cell.init(index)
        steps = self.settings.preference_steps

        def make(out: Path) -> None:
            prompts: list[dict[str, str]] = []
            for question, better, worse in self.preferences(who):
                prompt = PROMPT.format(question)
                pair = {"prompt": prompt, "chosen": f" {better}\n", "rejected": f" {worse}\n"}
                prompts.append(pair)
            _tune(self.base, self.tokenizer, prompts, out, init=init, steps=steps)

        return once(self.cache / f"over-{who}-{self.name}-init{init}-steps{steps}", make)

    def preferences(self, who: str, held_out: int = 0) -> list[tuple[str, str, str]]:
        """Return question, answer of the weak model and answer of a weaker one, where they differ.

        held_out: number of validation questions per family, in place of those of the training.
        """
        questions = self.questions(held_out)
        better, worse = self.answers("weak", held_out), self.answers(who, held_out)
        rows = zip(questions, better, worse, strict=True)
        return [row for row in rows if row[1] != row[2]]

    def answers(self, who: str, held_out: int = 0) -> list[str]:
        """Return the answers of the weak model, or of a weaker one, to all questions."""

        def make(out: Path) -> None:
            from peft import PeftModel

            model = copy.deepcopy(self.base)
            if who != "untrained":
                model = PeftModel.from_pretrained(model, self.weak()).merge_and_unload().eval()
            weaken(model, **WEAKER.get(who, {}))
            prompts = [PROMPT.format(question) for question in self.questions(held_out)]
            answers = list(generated(model, self.tokenizer, prompts, ASK))
            out.write_text(json.dumps(answers), "utf-8")

        part = f"-held-out{held_out}" if held_out else ""
        file = once(self.cache / f"answers-{who}-{self.name}{part}.json", make)
        return list(json.loads(file.read_text("utf-8")))

    def weak(self) -> Path:
        """Return the directory of the weak model's adapter."""
        mixture: Pairs = []
        for family in self.training():
            mixture += family[: -self.settings.preference_items]
        random.Random(self.cell.seed).shuffle(mixture)
        steps, seed = self.settings.weak_steps, 100 * self.cell.seed + 99
        make = partial(train, self.base, self.tokenizer, cycle(mixture), steps=steps, seed=seed)
        return once(self.cache / f"weak-{self.name}", make)

    def questions(self, held_out: int = 0) -> list[str]:
        """Return questions of every family that the weak model was not trained on."""
        if held_out:
            rows = [validation[:held_out] for validation, _, _ in self._lists()]
        else:
            rows = [family[-self.settings.preference_items :] for family in self.training()]
        return [question for family in rows for question, _ in family]

    def training(self) -> list[Pairs]:
        """Return the training pairs of every family."""
        return [training for _, _, training in self._lists()]

    def _lists(self) -> list[tuple[Pairs, Pairs, Pairs]]:
        """Return validation, test and training pairs of every family."""
        families = self.cell.families(self.size)
        return [pairs(self.tokenizer, name, self.cell.seed, self.settings) for name in families]


def _tune(
    base: Any,
    tokenizer: Any,
    preferences: list[dict[str, str]],
    out: Path,
    *,
    init: int,
    steps: int,
) -> None:
    """Tune a copy of the base with the trainer of examples/pda: TRL changes the model."""
    with TemporaryDirectory() as work:
        data = Path(work) / "pairs.jsonl"
        data.write_text("".join(json.dumps(pair) + "\n" for pair in preferences), "utf-8")
        given = {
            "student": "smollm2",
            "pairs": data,
            "out": out,
            "rank": RANK,
            "alpha": 2 * RANK,
            "dropout": 0.0,
        }
        given |= {**TRAINING, "max_steps": steps, "save_steps": steps + 1, "init_seed": init}
        words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        run = trainer(copy.deepcopy(base), tokenizer, options().parse_args(words), Path(work))
        run.train()
        write(run.model, out)
