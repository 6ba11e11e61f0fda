"""Merge with gam_merge, load the result into the model through PEFT, measure it on every family of the set."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer

import gam_merge as gm
from benchmarks.lab.design import BY_OVERLAP, EVERY, OF_MODULE, RANK
from examples.smollm import evaluate

Figures = dict[str, dict[str, float]]  # nll and accuracy by family
Questions = Mapping[str, list[tuple[str, str]]]


def merged(label: str, sources: list[Path], *, rank: str = "R", **params: Any) -> gm.MergeResult:
    """A method of the lab on these adapters, in float32, at rank "R", the sum of their ranks, or "r", that of one."""
    method, own = EVERY[label]
    if label in BY_OVERLAP:
        own = {"p": by_overlap(gm.compare(sources), of_module=label == OF_MODULE)}
    number = RANK * (len(sources) if rank == "R" else 1)
    return gm.merge(sources, method=method, rank=number, dtype="float32", params={**own, **params})


def by_overlap(found: gm.Comparison, *, of_module: bool) -> float | list[dict[str, Any]]:
    """p from the overlap of the column spaces: -1/2 where it is chance or less, 0 where the spaces are the same."""

    def p(measures: gm.Measures) -> float:
        return -(1 - max(0.0, float(measures.above_chance_u))) / 2

    if not of_module:
        return p(found.total)
    return [{"filter": name, "value": p(measures)} for name, measures in found.by("module").items()]


def short(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters for a row: of one that differs by module the least, the mean and the largest value."""
    found = dict(params)
    for name, value in params.items():
        if isinstance(value, list):
            values = [entry["value"] for entry in value]
            found[name] = {"least": min(values), "mean": fmean(values), "most": max(values)}
    return found


@contextmanager
def adapted(base: Any, adapter: gm.Adapter) -> Iterator[PeftModel]:
    """The base with an adapter in it, in the base's dtype; the base is left as it was."""
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
    """NLL and accuracy of each family."""
    with torch.no_grad():
        found = {family: evaluate(model, tokenizer, pairs) for family, pairs in questions.items()}
    return {
        "nll": {family: row["loss"] for family, row in found.items()},
        "accuracy": {family: row["exact"] for family, row in found.items()},
    }


def mean_nll(row: Mapping[str, Any]) -> float:
    """Mean over families."""
    return sum(row["nll"].values()) / len(row["nll"])


def overlaps(sources: list[Path]) -> dict[str, float]:
    """What gam-merge compare measures without any data."""
    names = ("overlap_u", "chance_u", "overlap_v", "chance_v", "cosine")
    found = gm.compare(sources).total
    return {name: float(getattr(found, name)) for name in names}
