"""The error of every method in every world, by the library itself.

The draws of one setting are the modules of one merge, so all of them are one stack.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

import gam_merge as gm
from benchmarks.theory.worlds import RANK, SIDE, WORLDS, World
from gam_merge._common.tensors import MemoryTensor

COUNTS = (2, 3, 4, 8)  # of adapters
NOISES = (0.1, 0.3, 1.0, 2.0)
DRAWS = 4
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mean": ("mean", {}),
    "mean, cut to rank 8": ("mean", {}),
    "gam": ("gam", {}),
    "gam, no anchor": ("gam", {"anchor": "none"}),
    "gam, polar": ("gam", {"orthonormalize": "polar"}),
    "consensus(0.25)": ("consensus", {"p": 0.25}),
    "consensus(0.5)": ("consensus", {"p": 0.5}),
    "consensus(-0.25)": ("consensus", {"p": -0.25}),
    "ties": ("ties", {}),
}
CUT = ("mean, cut to rank 8", "gam", "gam, no anchor", "gam, polar")

Row = dict[str, Any]


def rows() -> Iterator[Row]:
    """Yield a row per world, number of adapters and size of the noise."""
    for name, count, a in product(WORLDS, COUNTS, NOISES):
        yield {"world": name, "N": count, "a": a, **setting(WORLDS[name], count, a)}


def setting(world: World, count: int, a: float) -> Row:
    """Return mean squared errors over the draws, as they are and at the best scale.

    Both are relative to |signal|^2. ``kept`` is |gam| / |mean|, and ``apart`` the distance of gam
    without an anchor from gam, relative to gam.
    """
    draws = [world(torch.Generator().manual_seed(seed), count, a) for seed in range(DRAWS)]
    signals = torch.stack([signal for _, signal in draws])  # (draws, SIDE, SIDE)
    adapters = [_adapter([deltas[i] for deltas, _ in draws], i) for i in range(count)]
    merged = {label: _merged(label, adapters) for label in METHODS}
    own = {label: _error(x, signals, best=False) for label, x in merged.items()}
    best = {label: _error(x, signals, best=True) for label, x in merged.items()}
    free, paper = merged["gam, no anchor"], merged["gam"]
    return {
        "own": own,
        "best": best,
        "kept": float(free.norm() / merged["mean"].norm()),
        "apart": float((free - paper).norm() / paper.norm()),
    }


def _adapter(deltas: list[Tensor], position: int) -> gm.Adapter:
    """Return an adapter whose modules are the draws."""
    modules: dict[str, gm.LoraModule] = {}
    u, s, vt = torch.linalg.svd(torch.stack(deltas))
    for j in range(DRAWS):
        b, a = u[j, :, :RANK] * s[j, :RANK], vt[j, :RANK].contiguous()
        modules[f"{j}"] = gm.LoraModule(f"{j}", MemoryTensor(a), MemoryTensor(b), 1.0)
    return gm.Adapter(f"{position}", modules, "base", {"base_model_name_or_path": "base"})


def _merged(label: str, adapters: list[gm.Adapter]) -> Tensor:
    """Return the merge of every draw: (draws, SIDE, SIDE)."""
    method, params = METHODS[label]
    rank = RANK if label in CUT else SIDE
    result = gm.merge(adapters, method=method, params=params, rank=rank).adapter
    return torch.stack([result.modules[f"{j}"].delta() for j in range(DRAWS)])


def _error(x: Tensor, signals: Tensor, *, best: bool) -> float:
    """Return the mean of |c x - signal|^2 / |signal|^2, c the best scale of each draw or 1."""
    inner, square = (x * signals).sum((-2, -1)), x.square().sum((-2, -1))  # (draws,)
    length = signals.square().sum((-2, -1))
    c = inner / square if best else torch.ones_like(inner)
    return float(((c.square() * square - 2 * c * inner + length) / length).mean())
