"""Mixtures of experts: a module per expert and projection, or the experts of a layer stacked.

transformers 4 has ``<layer>.experts.<e>.gate_proj`` (``w1``), ``up_proj`` (``w3``) and
``down_proj`` (``w2``). transformers 5 has two parameters of ``<layer>.experts``, ``gate_up_proj``,
with gate above up, and ``down_proj``; PEFT adapts them by ``target_parameters``, and wraps the
first, ``<layer>.experts.base_layer``, in the second. Of each expert,

gate_up   A = [A_gate; A_up], B = blockdiag(B_gate, B_up), of rank 2 r
down      A = A_down, B = B_down

is the same delta, so adapters of both meet without base weights.
Tensor legend: ``E`` experts, ``m`` out and ``n`` in of one projection, ``r`` rank.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import DerivedTensor
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._read.layout import ExpertsLayout, Layout
from gam_merge._translate.dialect import Modules
from gam_merge._translate.language import EXPERT, PeftNames

_STACKED = re.compile(r"(?:.+\.)?experts(?:\.base_layer)*")
_PROJECTIONS = {
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
    "w1": "gate", "w3": "up", "w2": "down",
}  # fmt: skip
# Parameter -> the projections that it is, one above the other. In the order in which PEFT wraps.
_PARAMETERS = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}
_RENAMED = (".block_sparse_moe.", ".mlp.")  # in transformers 5
_INTERLEAVED = re.compile(r"gpt[-_]?oss", re.IGNORECASE)  # the rows of gate and up of such models


class StackedExperts(PeftNames):
    """The names of transformers 5, where the experts of a layer are one module."""

    name = "PEFT's format with stacked experts (transformers 5)"

    def recognizes(self, names: Collection[str]) -> bool:
        return any(_STACKED.fullmatch(name) for name in names)

    def is_default(self, names: Collection[str]) -> bool:
        return False

    def from_common(self, modules: Modules, adapter: Adapter) -> dict[str, LoraModule]:
        if adapter.format == self.format:
            modules = adapter.modules  # by the names that PEFT has for them
        else:
            modules = super().from_common(modules, adapter)
        stacked: dict[str, LoraModule] = {}
        layers: dict[str, _Layer] = {}  # by the module of all experts
        for name, module in modules.items():
            match = EXPERT.fullmatch(name)
            if match is None:
                stacked[name] = module
                continue
            _check_can_stack(adapter, module, match["projection"])
            layer = layers.setdefault(match["owner"], _Layer(adapter, match["owner"]))
            layer.add(_PROJECTIONS[match["projection"]], int(match["expert"]), module)
        for extra in adapter.extras.values() if layers else ():
            if EXPERT.fullmatch(extra.name):
                raise _cannot(adapter, extra.name, f"it cannot hold {extra.kind}")
        count = max((layer.experts for layer in layers.values()), default=0)
        for owner, layer in layers.items():
            stacked |= layer.stacked(count)
            router = f"{owner.removesuffix('experts')}gate"
            if router in stacked:
                stacked |= _router(stacked.pop(router))
        return stacked


@dataclass
class _Layer:
    """The experts of one layer, as single modules."""

    adapter: Adapter
    owner: str
    projections: dict[str, dict[int, LoraModule]] = field(
        default_factory=dict[str, dict[int, LoraModule]]
    )  # projection -> expert -> module

    @property
    def experts(self) -> int:
        """How many experts there are at least."""
        return 1 + max(max(modules) for modules in self.projections.values())

    def add(self, projection: str, expert: int, module: LoraModule) -> None:
        self.projections.setdefault(projection, {})[expert] = module

    def stacked(self, count: int) -> dict[str, LoraModule]:
        """Return the modules of the stacked layout. count: of experts; those missing are zero."""
        present: list[str] = []
        for parameter, projections in _PARAMETERS.items():
            if not self.projections.keys().isdisjoint(projections):
                present.append(parameter)
        layout = ExpertsLayout(count, tuple(sorted(present)))
        owner = self.owner.replace(*_RENAMED)
        modules: dict[str, LoraModule] = {}
        for depth, parameter in enumerate(reversed(present)):
            name = owner + depth * ".base_layer"
            members = [self.projections.get(part, {}) for part in _PARAMETERS[parameter]]
            module = self._stack(name, layout, members)
            modules[name] = replace(module, wrapper=owner if depth else None)
        return modules

    def _stack(
        self, name: str, layout: ExpertsLayout, projections: Sequence[Mapping[int, LoraModule]]
    ) -> LoraModule:
        """Return the module of one parameter. projections: those that lie in it, by expert."""
        members: list[LoraModule] = []
        places: list[tuple[int, int]] = []
        for part, modules in enumerate(projections):
            for expert, module in modules.items():
                members.append(module)
                places.append((expert, part))
        m, n = members[0].shape
        for module in members:
            if module.shape != (m, n):
                raise _cannot(
                    self.adapter,
                    module.name,
                    f"it is {module.shape}, and {members[0].name} is {(m, n)}",
                )
        widths = list(map(_largest_rank, projections))
        scales = tuple(module.scale for module in members)
        blocks = _Blocks(layout, m, n, tuple(widths), tuple(places), scales)
        b_shape, a_shape = layout.join_shapes(m * len(widths), n, sum(widths))
        dtype = reduce(torch.promote_types, (x.dtype for x in members), torch.float32)
        a = tuple(module.a for module in members)
        b = tuple(module.b for module in members)
        return LoraModule(
            name,
            DerivedTensor(a_shape, dtype, partial(_stacked_a, blocks), a),
            DerivedTensor(b_shape, dtype, partial(_stacked_b, blocks), b),
            1.0,
            layout,
        )


def _largest_rank(modules: Mapping[int, LoraModule]) -> int:
    """Return the rank that holds each expert of a projection, 0 without any."""
    return max([module.rank for module in modules.values()], default=0)


@dataclass(frozen=True)
class _Blocks:
    """Where the factors of single modules lie in those of a stack; the rest of it is zero."""

    layout: ExpertsLayout
    m: int
    n: int
    widths: tuple[int, ...]  # the largest rank of each projection
    places: tuple[tuple[int, int], ...]  # expert and projection of each module
    scales: tuple[float, ...]  # of each module

    def columns(self, part: int, rank: int) -> slice:
        """Return where a factor of some rank lies along the rank of the stack."""
        start = sum(self.widths[:part])
        return slice(start, start + rank)


def _stacked_a(blocks: _Blocks, *factors: Tensor) -> Tensor:
    """Return A (E r, n) of a stack."""
    out = _zeros(factors, blocks.layout.count, sum(blocks.widths), blocks.n)
    for (expert, part), a in zip(blocks.places, factors, strict=True):
        out[expert, blocks.columns(part, a.shape[0])] = a.to(out.dtype)
    return blocks.layout.join(out, out)[1].squeeze(0)


def _stacked_b(blocks: _Blocks, *factors: Tensor) -> Tensor:
    """Return B (m, r E) of a stack, the scales folded in."""
    m = blocks.m
    out = _zeros(factors, blocks.layout.count, m * len(blocks.widths), sum(blocks.widths))
    for (expert, part), scale, b in zip(blocks.places, blocks.scales, factors, strict=True):
        rows = slice(part * m, part * m + m)
        out[expert, rows, blocks.columns(part, b.shape[1])] = scale * b.to(out.dtype)
    return blocks.layout.join(out, out)[0].squeeze(0)


def _zeros(factors: Sequence[Tensor], *shape: int) -> Tensor:
    dtype = reduce(torch.promote_types, (factor.dtype for factor in factors), torch.float32)
    return torch.zeros(shape, dtype=dtype)


def _router(module: LoraModule) -> dict[str, LoraModule]:
    """Return the router of a layer, which is a parameter, too, and no longer a linear layer."""
    name = module.name.replace(*_RENAMED)
    return {name: replace(module, name=name, layout=ExpertsLayout(1, ("weight",)))}


def _check_can_stack(adapter: Adapter, module: LoraModule, projection: str) -> None:
    """Raise GamMergeError for a module of an expert that a stack cannot hold."""
    if _INTERLEAVED.search(adapter.base_model or ""):
        raise _cannot(
            adapter, module.name, f"{adapter.base_model} interleaves gate and up of its experts"
        )
    if projection not in _PROJECTIONS:
        listed = ", ".join(_PROJECTIONS)
        raise _cannot(adapter, module.name, f"it is none of {listed}")
    if module.magnitude is not None:
        raise _cannot(adapter, module.name, "it is DoRA, which PEFT does not support there")
    if type(module.layout) is not Layout:
        raise _cannot(adapter, module.name, f"it is {module.layout}")


def _cannot(adapter: Adapter, name: str, reason: str) -> GamMergeError:
    return GamMergeError(
        f"{adapter.source}: {name} cannot be brought into the stacked experts of the other "
        f"adapters, as transformers 5 has them: {reason}; merge adapters of one layout"
    )
