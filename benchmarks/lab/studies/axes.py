"""Deltas of one countable quality each: the study of examples/pda/axes.yaml, over seeds.

Questions, pairs, prompts and counts are those of the example; training is the loop of tune.py on a
base in bfloat16, in a third of the time of TRL in float32.
"""

import json
import random
from argparse import Namespace
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import axes as example
from ask import generated, messages, prompts
from evaluate import on_axes
from questions import open_questions

from benchmarks.lab.adapters import once
from benchmarks.lab.rows import Row
from benchmarks.lab.studies import figures
from benchmarks.lab.studies.design import Part, Study, number
from benchmarks.lab.studies.tune import Preference, write_delta

SYSTEM, TRAINING_ITEMS, TEST_ITEMS = "Be brief.", 96, 24
MARGIN_ITEMS = 12  # test questions whose answers, marked and plain, are held-out preferences
ASK = Namespace(system=SYSTEM, template="{question}", plain=False, batch=32, max_new_tokens=40)
TEST = Namespace(**{**vars(ASK), "batch": 24, "max_new_tokens": 48})


@dataclass(frozen=True)
class Axes:
    """The adapters of one seed: one per axis, one on all pairs, one on one axis after another."""

    study: Study
    seed: int
    base: Any
    tokenizer: Any
    folder: Path

    @cached_property
    def _questions(self) -> list[dict[str, str]]:
        return list(open_questions(random.Random(self.seed), TRAINING_ITEMS + TEST_ITEMS))

    def adapter(self, name: str) -> Path:
        """Return the directory of an adapter, which is trained if needed."""
        axes = list(example.AXES)
        if name.startswith("joint"):
            mixture: list[Preference] = []
            for axis in axes:
                mixture += self.preferences(axis)
            times = len(axes) if name == "joint" else 1
            return self._trained(name, mixture, times)
        if name == "sequential":
            start = self.adapter("single 0")
            for axis in axes[1:]:
                start = self._trained(f"then-{axis}", self.preferences(axis), start=start)
            return start
        axis = axes[number(name)]
        return self._trained(axis, self.preferences(axis))

    def preferences(self, axis: str) -> list[Preference]:
        """Return pairs of an answer that has a quality once and the same answer without it."""
        return self._marked(axis, self._questions[:TRAINING_ITEMS], "training")

    def _marked(self, axis: str, asked: list[dict[str, str]], part: str) -> list[Preference]:
        questions = [row["question"] for row in asked]
        rng, answers = random.Random(self.seed), self._answers(asked, part)
        return [Preference(*pair) for pair in example.marked(axis, questions, answers, rng)]

    def figures(self, model: Any, part: Part) -> Row:
        """Return counts per answer and margins on every axis, and the NLL of plain text."""
        asked = self._questions[TRAINING_ITEMS:]
        row = dict(on_axes(model, self.tokenizer, asked, TEST))
        nll, beyond = row.pop("prose NLL"), row.pop("beyond")
        held_out: dict[str, list[Preference]] = {}
        for axis in example.AXES:
            held_out[axis] = self._marked(axis, asked[:MARGIN_ITEMS], "held out")
        margins = figures.of_preferences(model, self.tokenizer, held_out, self._form)
        return {"nll": {"prose": nll}, "beyond": beyond, "counts": row, **margins}

    def _answers(self, asked: list[dict[str, str]], part: str) -> list[str]:
        """Return the student's own answers."""

        def make(out: Path) -> None:
            answers = generated(self.base, self.tokenizer, prompts(asked, ASK), ASK)
            out.write_text(json.dumps(list(answers)), "utf-8")

        file = once(self.folder / f"axes-answers-seed{self.seed}-{part}.json", make)
        return list(json.loads(file.read_text("utf-8")))

    def _trained(self, name: str, pairs: list[Preference], times: int = 1, **options: Any) -> Path:
        tuning = self.study.tuning
        assert tuning is not None
        make = partial(
            write_delta,
            base=self.base,
            tokenizer=self.tokenizer,
            pairs=pairs,
            tuning=replace(tuning, steps=times * tuning.steps),
            init=self.seed,
            form=self._form,
            **options,
        )
        return once(self.folder / f"axes-{name}-seed{self.seed}-lr{tuning.lr}", make)

    def _form(self, question: str, answer: str) -> tuple[str, str]:
        """Return the texts of prompt and answer of a conversation."""
        conversation = messages(question, SYSTEM, "{question}")
        prompt = self.tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=False
        )
        return prompt, answer + self.tokenizer.eos_token
