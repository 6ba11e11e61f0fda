"""PEFT's add_weighted_adapter and a dense merge, measured per module and summed over a model's shapes.

PEFT needs the base model in memory; here it gets one linear layer at a time, so its figures leave loading out. The
dense merge is what tools for whole models do: form every delta, average; no adapter comes out of it.
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
    """One square module: PEFT's svd over our mean, and how far both are from the best rank-r mean."""
    model, deltas = _model(size, size)
    peft = _seconds(lambda: _combine(model, "svd"))
    mean = sum(deltas) / COUNT
    u, s, v = torch.svd_lowrank(mean, q=COUNT * RANK, niter=4)
    best = (u[:, :RANK] * s[:RANK]) @ v[:, :RANK].T
    layer = model.base_model.model.w
    theirs = layer.lora_B["merged"].weight @ layer.lora_A["merged"].weight
    adapters = _adapters(model)
    ours, result = min(
        (_timed(lambda: gm.merge(adapters, method="mean")) for _ in range(5)),
        key=lambda pair: pair[0],
    )
    delta = result.adapter.modules["w"].delta(torch.float32)
    return {
        "case": f"one module {size} x {size}, N = {COUNT}, r = {RANK}",
        "PEFT svd (s)": peft,
        "gam-merge mean (s)": ours,
        "ratio": peft / ours,
        "error of PEFT": float((theirs - best).norm() / best.norm()),
        "error of gam-merge": float((delta - best).norm() / best.norm()),
    }


def model_row(kind: str) -> dict[str, Any]:
    """One of PEFT's combinations, or "dense": a module of each shape, times the number of such modules."""
    shapes = Counter((m, n) for _, m, n in MODELS[MODEL])
    total = 0.0
    for shape, number in shapes.items():
        model, _ = _model(*shape)
        total += number * _seconds(
            partial(_dense, model) if kind == "dense" else partial(_combine, model, kind)
        )
    return {
        "peer": "dense mean" if kind == "dense" else f"PEFT {kind}",
        "model": MODEL,
        "seconds": total,
    }


def _model(m: int, n: int) -> tuple[Any, list[torch.Tensor]]:
    """A PEFT model of one linear layer with random adapters, and their deltas."""
    from peft import LoraConfig, get_peft_model

    base = torch.nn.Sequential()
    base.add_module("w", torch.nn.Linear(n, m, bias=False))
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["w"], init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(base, config, adapter_name="0")
    for i in range(1, COUNT):
        model.add_adapter(str(i), config)
    layer = model.base_model.model.w
    return model, [
        (layer.lora_B[str(i)].weight @ layer.lora_A[str(i)].weight).detach() for i in range(COUNT)
    ]


def _adapters(model: Any) -> list[gm.Adapter]:
    from gam_merge._common.tensors import MemoryTensor

    layer = model.base_model.model.w
    pairs = [
        (layer.lora_A[str(i)].weight.detach(), layer.lora_B[str(i)].weight.detach())
        for i in range(COUNT)
    ]
    modules = [{"w": gm.LoraModule("w", MemoryTensor(a), MemoryTensor(b), 1.0)} for a, b in pairs]
    return [gm.Adapter(f"adapter-{i}", module, "base") for i, module in enumerate(modules)]


def _combine(model: Any, kind: str) -> None:
    rank = {"svd_rank": RANK} if kind == "svd" else {}
    weights = [1.0 / COUNT] * COUNT
    model.add_weighted_adapter(
        [str(i) for i in range(COUNT)], weights, "merged", combination_type=kind, **rank
    )


def _dense(model: Any) -> torch.Tensor:
    layer = model.base_model.model.w
    mean = torch.zeros_like(layer.weight)
    for i in range(COUNT):
        mean.addmm_(
            layer.lora_B[str(i)].weight.detach(),
            layer.lora_A[str(i)].weight.detach(),
            alpha=1 / COUNT,
        )
    return mean


def _seconds(job: Any) -> float:
    return _timed(job)[0]


def _timed(job: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = job()
    return time.perf_counter() - start, result
