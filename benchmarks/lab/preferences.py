"""Preference deltas: the base tuned by DPO to prefer what a weak model answers over what a weaker copy of it does.

The weak model is the base with an adapter trained for a few steps on the families of the set. Weaker ones are copies of
it, damaged in one way each, and the base itself; that is what the adapters of a set differ in. Damage and training are
those of examples/pda.
"""

import copy
import json
import random
import sys
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.lab.adapters import Pairs, once, pairs
from benchmarks.lab.design import RANK, Cell, Settings
from examples.smollm import train, write

sys.path.append(
    str(Path(__file__).parents[2] / "examples" / "pda")
)  # its scripts import each other by name
from models import weaken
from train_delta import options, trainer

PROMPT = "Question: {}\nAnswer:"
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
    """The directory of adapter ``index``, of the pairs with the weaker copy of that number."""
    return _Set(cell, size, base, tokenizer, cache, settings).adapter(index)


@dataclass(frozen=True)
class _Set:
    """Where the adapters of a set come from. Weak model and answers are the same in both regimes."""

    cell: Cell
    size: int
    base: Any
    tokenizer: Any
    cache: Path
    settings: Settings

    @property
    def name(self) -> str:
        return f"of{self.size}-seed{self.cell.seed}-steps{self.settings.weak_steps}"

    def adapter(self, index: int) -> Path:
        """The base tuned on the pairs in which the answers differ."""
        who, init = tuple(WEAKER)[index], self.cell.init(index)

        def make(out: Path) -> None:
            answers = zip(self.questions(), self.answers("weak"), self.answers(who), strict=True)
            found = [
                {
                    "prompt": PROMPT.format(question),
                    "chosen": f" {better}\n",
                    "rejected": f" {worse}\n",
                }
                for question, better, worse in answers
                if better != worse
            ]
            _tune(
                self.base,
                self.tokenizer,
                found,
                out,
                init=init,
                steps=self.settings.preference_steps,
            )

        return once(
            self.cache / f"over-{who}-{self.name}-init{init}-steps{self.settings.preference_steps}",
            make,
        )

    def answers(self, who: str) -> list[str]:
        """What the weak model, or a weaker one, says to all questions."""

        def make(out: Path) -> None:
            from peft import PeftModel

            model = copy.deepcopy(self.base)
            if who != "untrained":
                model = PeftModel.from_pretrained(model, self.weak()).merge_and_unload().eval()
            weaken(model, **WEAKER.get(who, {}))
            prompts = [PROMPT.format(question) for question in self.questions()]
            out.write_text(json.dumps(answer(model, self.tokenizer, prompts)), "utf-8")

        return list(
            json.loads(
                once(self.cache / f"answers-{who}-{self.name}.json", make).read_text("utf-8")
            )
        )

    def weak(self) -> Path:
        """The adapter of the weak model."""
        mixture = [
            pair for family in self.training() for pair in family[: -self.settings.preference_items]
        ]
        random.Random(self.cell.seed).shuffle(mixture)
        steps, seed = self.settings.weak_steps, 100 * self.cell.seed + 99
        make = partial(train, self.base, self.tokenizer, cycle(mixture), steps=steps, seed=seed)
        return once(self.cache / f"weak-{self.name}", make)

    def questions(self) -> list[str]:
        """Of every family some that the weak model was not trained on."""
        return [
            question
            for family in self.training()
            for question, _ in family[-self.settings.preference_items :]
        ]

    def training(self) -> list[Pairs]:
        """The training pairs of every family."""
        families = self.cell.families(self.size)
        return [
            pairs(self.tokenizer, family, self.cell.seed, self.settings)[2] for family in families
        ]


def _tune(
    base: Any, tokenizer: Any, found: list[dict[str, str]], out: Path, *, init: int, steps: int
) -> None:
    """By the trainer of examples/pda, on a copy: TRL leaves a forward of its own in the model that it is given."""
    with TemporaryDirectory() as work:
        data = Path(work) / "pairs.jsonl"
        data.write_text("".join(json.dumps(pair) + "\n" for pair in found), "utf-8")
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


def answer(model: Any, tokenizer: Any, prompts: list[str], *, batch: int = 80) -> list[str]:
    """The first line of what a model says to each prompt, by greedy decoding, twenty tokens at most."""
    import torch

    newline = tokenizer("\n").input_ids[-1]
    found = []
    for start in range(0, len(prompts), batch):
        rows = tokenizer(
            prompts[start : start + batch], padding=True, padding_side="left", return_tensors="pt"
        )
        with torch.no_grad():
            out = model.generate(
                **rows,
                do_sample=False,
                max_new_tokens=20,
                eos_token_id=newline,
                pad_token_id=tokenizer.pad_token_id,
            )
        said = tokenizer.batch_decode(
            out[:, rows["input_ids"].shape[1] :], skip_special_tokens=True
        )
        found += [text.split("\n")[0].strip() for text in said]
    return found
