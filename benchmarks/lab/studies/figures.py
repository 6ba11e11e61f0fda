"""What is measured of a model: likelihood of right answers, margins on held-out preferences."""

from collections.abc import Mapping
from typing import Any

from benchmarks.lab import measure
from benchmarks.lab.adapters import Pairs, pairs
from benchmarks.lab.design import Settings
from benchmarks.lab.rows import Row
from benchmarks.lab.studies.design import TEST_ITEMS, VALIDATION_ITEMS, Part
from benchmarks.lab.studies.tune import Form, Preference, margins
from examples.smollm import one_line

_ITEMS: Mapping[Part, int] = {"validation": VALIDATION_ITEMS, "test": TEST_ITEMS}  # per family


def of_tasks(model: Any, tokenizer: Any, families: tuple[str, ...], seed: int, part: Part) -> Row:
    """Return NLL per answer token and accuracy, by family."""
    index = list(_ITEMS).index(part)  # of the lists of adapters.pairs
    questions: dict[str, Pairs] = {}
    for family in families:
        lists = pairs(tokenizer, family, seed, Settings())
        questions[family] = lists[index][: _ITEMS[part]]
    return dict(measure.figures(model, tokenizer, questions))


def of_deltas(
    model: Any,
    tokenizer: Any,
    families: tuple[str, ...],
    seed: int,
    part: Part,
    held_out: Mapping[str, list[Preference]],
) -> Row:
    """Return the figures of tasks, and of held-out preferences where it is a test."""
    row = of_tasks(model, tokenizer, families, seed, part)
    if part == "test":
        row |= of_preferences(model, tokenizer, held_out)
    return row


def of_preferences(
    model: Any, tokenizer: Any, held_out: Mapping[str, list[Preference]], form: Form = one_line
) -> Row:
    """Return the mean margin on every list of held-out preferences, in nats."""
    preferences: list[Preference] = []
    for of_pair in held_out.values():
        preferences += of_pair
    sizes = [len(of_pair) for of_pair in held_out.values()]
    parts = margins(model, tokenizer, preferences, form).split(sizes)
    means = [part.mean().item() for part in parts]
    return {"margin": dict(zip(held_out, means, strict=True))}
