"""Merges with gam_merge, loads the result into the model with PEFT, and measures it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer

import gam_merge as gm
from benchmarks.lab.design import BY_OVERLAP, EVERY, OF_MODULE, RANK
from examples.smollm import evaluate

Figures = dict[str, dict[str, float]]  # nll and accuracy by family
Questions = Mapping[str, list[tuple[str, str]]]


def merged(label: str, sources: list[Path], *, rank: str = "R", **params: Any) -> gm.MergeResult:
    """Merge adapters by a method of the lab, in float32.

    rank: "R", the sum of their ranks, or "r", that of one.
    """
    method, known = EVERY[label]
    if label in BY_OVERLAP:
        known = {"p": by_overlap(gm.compare(sources), of_module=label == OF_MODULE)}
    number = RANK * (len(sources) if rank == "R" else 1)
    params = {**known, **params}
    return gm.merge(sources, method=method, rank=number, dtype="float32", params=params)


def by_overlap(comparison: gm.Comparison, *, of_module: bool) -> float | list[dict[str, Any]]:
    """Return p from the overlap of the column spaces: -1/2 up to chance, 0 for equal spaces."""

    def p(measures: gm.Measures) -> float:
        return -(1 - max(0.0, float(measures.above_chance_u))) / 2

    if not of_module:
        return p(comparison.total)
    modules = comparison.by("module").items()
    return [{"filter": name, "value": p(measures)} for name, measures in modules]


def short(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters for a row: the least, mean and largest value if they differ by module."""
    shortened = dict(params)
    for name, value in params.items():
        if isinstance(value, list):
            values = [entry["value"] for entry in value]
            shortened[name] = {"least": min(values), "mean": fmean(values), "most": max(values)}
    return shortened


@contextmanager
def adapted(base: Any, adapter: gm.Adapter) -> Iterator[PeftModel]:
    """Put an adapter into the base, in the base's dtype. On leaving, the base is as it was."""
    config = PeftConfig.from_peft_type(**adapter.config)
    model = get_peft_model(base, config, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
    tensors = {key: value.to(base.dtype) for key, value in gm.state_dict(adapter).items()}
    set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=True)
    try:
        yield model.eval()
    finally:
        model.unload()


def scale(model: PeftModel, factor: float) -> None:
    """Multiply the delta of an adapter whose own scale is 1."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] = factor


def figures(model: Any, tokenizer: Any, questions: Questions) -> Figures:
    """Return NLL and accuracy of each family."""
    nll: dict[str, float] = {}
    accuracy: dict[str, float] = {}
    for family, pairs in questions.items():
        figures = evaluate(model, tokenizer, pairs)
        nll[family], accuracy[family] = figures["loss"], figures["exact"]
    return {"nll": nll, "accuracy": accuracy}


def mean_nll(row: Mapping[str, Any]) -> float:
    """Return the mean NLL over families."""
    return sum(row["nll"].values()) / len(row["nll"])


def overlaps(sources: list[Path]) -> dict[str, float]:
    """Return what gam-merge compare measures without any data."""
    names = ("overlap_u", "chance_u", "overlap_v", "chance_v", "cosine")
    total = gm.compare(sources).total
    return {name: float(getattr(total, name)) for name in names}
