"""The rows of the studies, over processes: evaluated in float32, each measured once."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import gam_merge as gm
from benchmarks.lab import measure, rows
from benchmarks.lab.adapters import Pairs, pairs
from benchmarks.lab.design import Settings
from benchmarks.lab.studies.design import (
    LENGTHS,
    METHODS,
    TEST_ITEMS,
    VALIDATION_ITEMS,
    Study,
    Unit,
)
from benchmarks.lab.studies.sets import FAMILIES, AdapterSet, adapter_set
from benchmarks.lab.studies.tune import margins

RESULTS = Path(__file__).with_name("results.jsonl")
KEY = ("study", "seed", "size", "method", "scale")
_VALIDATION, _TEST = 0, 1  # of the lists of adapters.pairs

Subject = tuple[int, str, str]  # number of adapters, label, scale


class Models:
    """The base twice: bfloat16 to train in a third of the time, float32 to measure."""

    @cached_property
    def training(self) -> tuple[Any, Any]:
        """The base in bfloat16, and its tokenizer."""
        import torch

        from examples.smollm import load_base

        return load_base(torch.bfloat16)

    @cached_property
    def exact(self) -> Any:
        """The base in float32."""
        import torch

        from examples.smollm import load_base

        return load_base(torch.float32)[0]

    @cached_property
    def _weights(self) -> dict[str, Any]:
        return {name: weight.clone() for name, weight in self.exact.state_dict().items()}

    @contextmanager
    def fused(self, adapter: gm.Adapter, factor: float = 1.0) -> Iterator[Any]:
        """Add an adapter, its delta times a factor, to the float32 weights for a while."""
        weights = self._weights
        with measure.adapted(self.exact, adapter) as model:
            measure.scale(model, factor * model.peft_config["default"].lora_alpha / adapter.rank)
            model.merge_adapter()
            yield model
            model.unmerge_adapter()
        self.exact.load_state_dict(weights)  # to the bit, where a subtraction is not


class Measurement:
    """The figures of one seed of a study."""

    def __init__(self, unit: Unit, models: Models, folder: Path, settings: Settings) -> None:
        self.unit, self.models, self.settings = unit, models, settings
        base, self.tokenizer = models.training
        self.set: AdapterSet = adapter_set(
            unit.study, unit.seed, base, self.tokenizer, folder, settings
        )
        self.families = unit.study.cell(unit.seed).families(FAMILIES)

    def figures(self, model: Any) -> rows.Row:
        """Return NLL and accuracy by family, and the mean margin on each pair of models."""
        row: rows.Row = dict(measure.figures(model, self.tokenizer, self._questions(_TEST)))
        held_out = self.set.held_out()
        if held_out:
            preferences = [p for of_pair in held_out.values() for p in of_pair]
            parts = margins(model, self.tokenizer, preferences).split(
                [len(of_pair) for of_pair in held_out.values()]
            )
            means = [part.mean().item() for part in parts]
            row["margin"] = dict(zip(held_out, means, strict=True))
        return row

    def base(self) -> rows.Row:
        """Measure the model without an adapter."""
        return self.figures(self.models.exact)

    def single(self, index: int) -> rows.Row:
        """Measure one adapter."""
        with self.models.fused(gm.load(self.set.adapter(index))) as model:
            return self.figures(model)

    def overlaps(self, size: int) -> rows.Row:
        """Return what ``gam-merge compare`` measures."""
        return dict(measure.overlaps(self._sources(size)))

    def merge(self, size: int, label: str, scale: str) -> rows.Row:
        """Merge, and measure the result."""
        method, params = METHODS[label]
        # auto has a rank of its own; all others are at the sum of the ranks, or lower by nature
        rank = None if method == "auto" else size * self.unit.study.rank
        rescale = {"rescale": "norm"} if scale == "norm" else {}
        result = gm.merge(
            self._sources(size),
            method=method,
            rank=rank,
            dtype="float32",
            params={**params, **rescale},
        )
        ratio = result.report.norm_ratio
        row: rows.Row = {"norm_ratio": ratio, "took": result.report.method}
        factor = 1.0
        if scale == "tuned":
            row |= self._tuned(result.adapter, ratio)
            factor = row["length"] / ratio
        with self.models.fused(result.adapter, factor) as model:
            return row | self.figures(model)

    def _tuned(self, adapter: gm.Adapter, ratio: float) -> rows.Row:
        """Return the length that validation questions choose, and the NLL at every length."""
        questions = self._questions(_VALIDATION)
        tried: dict[float, float] = {}
        for length in LENGTHS:
            with self.models.fused(adapter, length / ratio) as model:
                tried[length] = measure.mean_nll(measure.figures(model, self.tokenizer, questions))
        return {"length": min(tried, key=lambda length: tried[length]), "validation": tried}

    def _sources(self, size: int) -> list[Path]:
        return [self.set.adapter(index) for index in range(size)]

    def _questions(self, part: int) -> Mapping[str, Pairs]:
        items = {_VALIDATION: VALIDATION_ITEMS, _TEST: TEST_ITEMS}[part]
        questions: dict[str, Pairs] = {}
        for family in self.families:
            lists = pairs(self.tokenizer, family, self.unit.seed, self.settings)
            questions[family] = lists[part][:items]
        return questions


class Studies:
    """One process: the models, and the places of adapters and rows."""

    def __init__(self, folder: Path, results: Path = RESULTS) -> None:
        self.folder, self.results, self.models = folder, results, Models()

    def run(self, unit: Unit) -> None:
        """Do everything that is missing of one unit."""
        study = unit.study
        known = {rows.key(row, KEY) for row in rows.read(self.results)}
        missing = [subject for subject in subjects(study) if self._key(unit, subject) not in known]
        if not missing:
            return
        measurement = Measurement(unit, self.models, self.folder, Settings())
        for size, label, scale in missing:
            start = time.process_time()
            if label == "base":
                figures = measurement.base()
            elif label == "compare":
                figures = measurement.overlaps(size)
            elif label.startswith("single "):
                figures = measurement.single(int(label.removeprefix("single ")))
            else:
                figures = measurement.merge(size, label, scale)
            seconds = round(time.process_time() - start, 1)
            key = dict(zip(KEY, self._key(unit, (size, label, scale)), strict=True))
            rows.append(self.results, key | figures | {"dtype": "float32", "seconds": seconds})
            print(f"{study.name}, seed {unit.seed}: {label} of {size}, {scale}", flush=True)

    def _key(self, unit: Unit, subject: Subject) -> tuple[str, int, int, str, str]:
        size, label, scale = subject
        return (unit.study.name, unit.seed, size, label, scale)


def subjects(study: Study) -> list[Subject]:
    """Return all rows of one seed: base, single adapters, overlaps, merges."""
    largest = max(study.sizes)
    alone: list[Subject] = [(1, "base", "own")]
    alone += [(1, f"single {index}", "own") for index in range(largest)]
    alone += [(size, "compare", "own") for size in study.sizes]
    return alone + list(product(study.sizes, study.methods, study.scales))
