"""A merge on a device and the same on the CPU: seconds, and the distance of the results."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gam_merge as gm
from benchmarks.shapes import MODELS, make_adapters
from gam_kernels import product_norm
from gam_merge._common.tensors import read
from gam_merge._run import walk

FIRST = ("gam", "mean", "consensus")
CHUNKS = (40, 160, 640, 2560)  # MB of factors in float64 at a time
_COUNT = 3  # adapters, unless a rule takes another number
_UNITS = 128  # layers times rank: enough modules of a low rank, few of a high one
_LARGE = 256  # rank from which most rules are not run on the CPU, which takes too long
_SHORT = 3.0  # seconds of a merge that is done once more


@dataclass(frozen=True)
class Case:
    """Some layers of a model, whose seconds are counted for all of them."""

    model: str
    rank: int
    layers: int

    @property
    def whole(self) -> float:
        """How many times the layers of the case make a model."""
        return MODELS[self.model].layers / self.layers


def _case(model: str, rank: int) -> Case:
    return Case(model, rank, max(1, _UNITS // rank))


CASES = tuple(_case(model, rank) for rank in (16, 64, 256) for model in ("qwen3-8b", "llama3-70b"))
TOY = (Case("smollm2-135m", 4, 1),)


def others() -> list[str]:
    """Return the rules that come after the first ones."""
    return [method.name for method in gm.methods() if method.name not in FIRST]


def rows(
    folder: Path, device: torch.device, cases: tuple[Case, ...], methods: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield a row per case and rule."""
    for case in cases:
        for method in methods:
            what = {"what": "merge", "model": case.model, "r": case.rank, "method": method}
            yield what | _measured(folder, device, case, method)


def chunk_rows(folder: Path, device: torch.device, case: Case) -> Iterator[dict[str, Any]]:
    """Yield the seconds of ``gam`` per size of the pieces that are read and merged at a time."""
    usual = walk._CHUNK_BYTES
    for megabytes in CHUNKS:
        walk._CHUNK_BYTES = megabytes << 20
        what = {"what": "chunk", "model": case.model, "r": case.rank, "MB": megabytes}
        seconds, _ = _best_of_two(_sources(folder, case, "gam"), "gam", device)
        yield what | {"seconds": case.whole * seconds}
    walk._CHUNK_BYTES = usual


def _sources(folder: Path, case: Case, method: str) -> list[Path]:
    count = gm.get_method(method).adapters or _COUNT
    layers, rank = case.layers, case.rank
    return make_adapters(folder, case.model, count=count, rank=rank, layers=layers)


def _measured(folder: Path, device: torch.device, case: Case, method: str) -> dict[str, Any]:
    sources = _sources(folder, case, method)
    try:
        seconds, results = _best_of_two(sources, method, device)
        row: dict[str, Any] = {"layers": case.layers, "seconds": case.whole * seconds}
        if len(results) > 1:
            row["same again"] = max(distances(*results)) == 0
        if case.rank < _LARGE or method in FIRST:
            cpu_seconds, expected = _merged(sources, method, torch.device("cpu"))
            row["CPU (s)"] = case.whole * cpu_seconds
            row["error"] = max(distances(results[0], expected))
        return row
    except (gm.GamMergeError, RuntimeError) as error:
        return {"failed": str(error).splitlines()[0]}


def _best_of_two(
    sources: list[Path], method: str, device: torch.device
) -> tuple[float, list[gm.Adapter]]:
    """Return the seconds of the faster of two merges, and what they gave; a long one is not redone.

    The first one loads kernels.
    """
    first, once = _merged(sources, method, device)
    if first > _SHORT:
        return first, [once]
    second, again = _merged(sources, method, device)
    return min(first, second), [once, again]


def _merged(sources: list[Path], method: str, device: torch.device) -> tuple[float, gm.Adapter]:
    """Return the seconds of reading and merging, and the merge in float32, on the CPU."""
    start = time.perf_counter()
    adapter = gm.merge(sources, method=method, device=device, dtype="float32").adapter
    return time.perf_counter() - start, adapter


def distances(x: gm.Adapter, y: gm.Adapter) -> Iterator[float]:
    """Yield |x - y| / |y| of every module, or |x - y| where y is zero."""
    for name, module in x.modules.items():
        b_x, a_x = _factors(module)
        b_y, a_y = _factors(y.modules[name])
        norm = float(product_norm(b_y, a_y))
        if torch.equal(b_x, b_y) and torch.equal(a_x, a_y):
            yield 0.0
            continue
        difference = product_norm(torch.cat([b_x, -b_y], -1), torch.cat([a_x, a_y], -1))
        yield float(difference) / (norm or 1.0)


def _factors(module: gm.LoraModule) -> tuple[Tensor, Tensor]:
    """Return b (1, m, r) and a (1, n, r) in float64. Their scale is 1."""
    b, a = read(module.b).double(), read(module.a).double()
    return b.unsqueeze(0), a.mT.unsqueeze(0)
