"""PEFT's add_weighted_adapter and a dense merge, measured per module and summed over a model.

PEFT needs the base model in memory; here it gets one linear layer at a time, so its figures leave
out loading. The dense merge is what tools for whole models do: form every delta and average. It
gives no adapter.
"""

import time
from collections import Counter
from functools import partial
from typing import Any

import torch

import gam_merge as gm
from benchmarks.shapes import MODELS

MODEL, COUNT, RANK = "qwen3-8b", 4, 16
KINDS = ("linear", "cat", "dense", "svd")


def module_row(size: int = 4096) -> dict[str, Any]:
    """Return PEFT's svd over our mean on one square module, and how far both are from the best."""
    model, deltas = _model(size, size)
    peft = _seconds(lambda: _combine(model, "svd"))
    mean = sum(deltas) / COUNT
    u, s, v = torch.svd_lowrank(mean, q=COUNT * RANK, niter=4)
    best = (u[:, :RANK] * s[:RANK]) @ v[:, :RANK].T
    layer = model.base_model.model.w
    peft_delta = layer.lora_B["merged"].weight @ layer.lora_A["merged"].weight
    adapters = _adapters(model)
    timed = [_timed(lambda: gm.merge(adapters, method="mean")) for _ in range(5)]
    ours, result = min(timed, key=lambda pair: pair[0])
    delta = result.adapter.modules["w"].delta(torch.float32)
    return {
        "case": f"one module {size} x {size}, N = {COUNT}, r = {RANK}",
        "PEFT svd (s)": peft,
        "gam-merge mean (s)": ours,
        "ratio": peft / ours,
        "error of PEFT": float((peft_delta - best).norm() / best.norm()),
        "error of gam-merge": float((delta - best).norm() / best.norm()),
    }


def model_row(kind: str) -> dict[str, Any]:
    """Return the seconds of one of PEFT's combinations, or of the dense merge, for a whole model.

    A module of each shape is measured, and counted as often as the model has it.
    """
    shapes = Counter((m, n) for _, m, n in MODELS[MODEL])
    total = 0.0
    for shape, number in shapes.items():
        model, _ = _model(*shape)
        job = partial(_dense, model) if kind == "dense" else partial(_combine, model, kind)
        total += number * _seconds(job)
    return {
        "peer": "dense mean" if kind == "dense" else f"PEFT {kind}",
        "model": MODEL,
        "seconds": total,
    }


def _model(m: int, n: int) -> tuple[Any, list[torch.Tensor]]:
    """Return a PEFT model of one linear layer with random adapters, and their deltas."""
    from peft import LoraConfig, get_peft_model

    base = torch.nn.Sequential()
    base.add_module("w", torch.nn.Linear(n, m, bias=False))
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["w"], init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(base, config, adapter_name="0")
    for i in range(1, COUNT):
        model.add_adapter(str(i), config)
    return model, [(b @ a).detach() for b, a in _factors(model)]


def _factors(model: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return B and A of each adapter."""
    layer = model.base_model.model.w
    return [(layer.lora_B[str(i)].weight, layer.lora_A[str(i)].weight) for i in range(COUNT)]


def _adapters(model: Any) -> list[gm.Adapter]:
    from gam_merge._common.tensors import MemoryTensor

    adapters: list[gm.Adapter] = []
    for i, (b, a) in enumerate(_factors(model)):
        module = gm.LoraModule("w", MemoryTensor(a.detach()), MemoryTensor(b.detach()), 1.0)
        adapters.append(gm.Adapter(f"adapter-{i}", {"w": module}, "base"))
    return adapters


def _combine(model: Any, kind: str) -> None:
    rank = {"svd_rank": RANK} if kind == "svd" else {}
    weights = [1.0 / COUNT] * COUNT
    model.add_weighted_adapter(
        [str(i) for i in range(COUNT)], weights, "merged", combination_type=kind, **rank
    )


def _dense(model: Any) -> torch.Tensor:
    mean = torch.zeros_like(model.base_model.model.w.weight)
    for b, a in _factors(model):
        mean.addmm_(b.detach(), a.detach(), alpha=1 / COUNT)
    return mean


def _seconds(job: Any) -> float:
    return _timed(job)[0]


def _timed(job: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = job()
    return time.perf_counter() - start, result
