"""The changes that fusing an adapter makes to a tensor of its base model, checked as they are made.

Tensor legend: ``S`` matrices in a tensor, ``m`` out, ``n`` in, ``r`` rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import dtype_name, read
from gam_merge._read.adapter import Extra, LoraModule
from gam_merge._read.layout import ConvLayout

_BLOCK = 1 << 19  # elements of a weight that are worked on at a time


@dataclass(frozen=True)
class FusedModule:
    """A module that was fused: its delta, and the weight that it was added to.

    Attributes:
        name: the module.
        shape: (out, in) of each of its matrices.
        delta_norm: the Frobenius norm of the delta D that was to be added.
        weight_norm: the norm of the weight before.
        kept: <R, D> of the change R that the rounded weight really made, so that kept / |D|^2 is
            the share of the delta that survives.

    Example:
        >>> import os, torch
        >>> from safetensors.torch import save_file
        >>> os.mkdir("base")
        >>> save_file({"layers.0.q_proj.weight": torch.eye(4)}, "base/model.safetensors")
        >>> prefix = "base_model.model.layers.0.q_proj.lora"
        >>> a, b = torch.ones(1, 4), torch.ones(4, 1)
        >>> factors = {f"{prefix}_A.weight": a, f"{prefix}_B.weight": b}
        >>> adapter = gm.from_state_dict(factors, {"r": 1, "lora_alpha": 1})
        >>> module = gm.fuse("base", adapter, "fused").modules[0]
        >>> module.name, module.delta_norm, module.weight_norm, module.survival
        ('layers.0.q_proj', 4.0, 2.0, 1.0)
    """

    name: str
    shape: tuple[int, int]
    delta_norm: float
    weight_norm: float
    kept: float

    @property
    def survival(self) -> float:
        """<R, D> / |D|^2, 1 for a delta of zero."""
        return self.kept / self.delta_norm**2 if self.delta_norm else 1.0


class Edit(Protocol):
    """A change to one tensor."""

    def apply(self, weight: Tensor) -> FusedModule | None:
        """Change the tensor in place.

        Raises GamMergeError for NaN or Inf in the tensor, the adapter or the result.
        """
        ...


@dataclass(frozen=True)
class AddDelta:
    """weight + scale * B A, each element rounded to the dtype of the weight once.

    The rows of a DoRA are then scaled to its magnitudes. ``transposed``: the weight is kept as
    (in, out). ``adapter``: its name, for errors.
    """

    adapter: str
    module: LoraModule
    transposed: bool

    def apply(self, weight: Tensor) -> FusedModule:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        name = f"{self.adapter}: module {self.module.name}"
        b, a = self.module.factors(dtype)  # (S, m, r), (S, r, n)
        _check_adapter(name, "factor B", b)
        _check_adapter(name, "factor A", a)
        b = b * self.module.scale
        magnitude: Tensor | None = None
        if self.module.magnitude is not None:
            magnitude = read(self.module.magnitude).to(dtype).flatten()  # (m,)
            _check_adapter(name, "the magnitudes of DoRA", magnitude)
        total = torch.zeros(3, dtype=torch.float64)
        for matrix, left, right in zip(self._matrices(weight), b, a, strict=True):
            for sums in _add(matrix, left, right, magnitude, name):
                total += sums
        weight_energy, delta_energy, kept = total.tolist()
        return FusedModule(
            name=self.module.name,
            shape=self.module.shape,
            delta_norm=sqrt(delta_energy),
            weight_norm=sqrt(weight_energy),
            kept=kept,
        )

    def _matrices(self, weight: Tensor) -> Tensor:
        """View the tensor as (S, m, n)."""
        if isinstance(self.module.layout, ConvLayout):
            return weight.flatten(1).unsqueeze(0)
        if weight.dim() == 2:
            weight = weight.unsqueeze(0)
        return weight.mT if self.transposed else weight


def _add(
    weight: Tensor, b: Tensor, a: Tensor, magnitude: Tensor | None, name: str
) -> Iterator[Tensor]:
    """Add b a to a matrix (m, n), in blocks of rows, and scale the rows to the magnitudes.

    Yields |W|^2, |D|^2 and <R, D> of each block: W the weight before, D what was to be added, R
    what rounding has made of D.
    """
    rows = max(1, _BLOCK // weight.shape[1])
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        block = weight[part]
        before = block.to(b.dtype, copy=True)
        if not before.isfinite().all():
            raise GamMergeError(f"{name}: the weight of the base model has NaN or Inf")
        delta = b[part] @ a
        if magnitude is not None:
            delta = _scaled(before, delta, magnitude[part], name)
        block.copy_(before + delta)
        _check_fits(name, block)
        change = block.to(b.dtype) - before
        yield torch.stack([_inner(before, before), _inner(delta, delta), _inner(change, delta)])


def _scaled(before: Tensor, delta: Tensor, magnitude: Tensor, name: str) -> Tensor:
    """Return what DoRA adds to rows: c (W + D) - W, with c = magnitude / |row of W + D|."""
    norms = torch.linalg.vector_norm(before + delta, dim=1, dtype=torch.float64)
    if not norms.all():
        raise GamMergeError(
            f"{name}: a row of the weight plus its delta is zero, which DoRA cannot scale; "
            "the adapter belongs to another base model"
        )
    c = (magnitude / norms).unsqueeze(1)  # (rows, 1) float64
    return (c - 1).to(before) * before + c.to(before) * delta


def _inner(x: Tensor, y: Tensor) -> Tensor:
    return (x.double() * y.double()).sum()


@dataclass(frozen=True)
class AddExtra:
    """weight + scale * value: the effect of lora_bias on a bias."""

    adapter: str
    extra: Extra

    def apply(self, weight: Tensor) -> None:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        value = _value(self.adapter, self.extra).to(dtype)
        weight.copy_(weight.to(dtype) + self.extra.scale * value)
        _check_fits(f"{self.adapter}: tensor {self.extra.name}", weight)


@dataclass(frozen=True)
class Replace:
    """The value of the adapter, rounded to the dtype of the weight; with ``rows`` only in those."""

    adapter: str
    extra: Extra
    rows: Sequence[int] | None = None

    def apply(self, weight: Tensor) -> None:
        value = _value(self.adapter, self.extra).to(weight.dtype)
        _check_fits(f"{self.adapter}: tensor {self.extra.name}", value)
        if self.rows is None:
            weight.copy_(value)
        else:
            weight[torch.tensor(self.rows)] = value


def _value(adapter: str, extra: Extra) -> Tensor:
    """Read a tensor of the adapter. Raises GamMergeError for NaN or Inf in it."""
    value = read(extra.tensor)
    if not value.isfinite().all():
        raise GamMergeError(f"{adapter}: tensor {extra.name} has NaN or Inf; it cannot be fused")
    return value


def _check_adapter(subject: str, part: str, values: Tensor) -> None:
    """Raise GamMergeError for NaN or Inf in a tensor of the adapter."""
    if not values.isfinite().all():
        raise GamMergeError(f"{subject} has NaN or Inf in {part}; it cannot be fused")


def _check_fits(subject: str, values: Tensor) -> None:
    """Raise GamMergeError for a result that its dtype cannot hold."""
    if not values.isfinite().all():
        raise GamMergeError(
            f"{subject}: the fused values do not fit into {dtype_name(values.dtype)}; "
            "fuse into a base model in bfloat16 or float32"
        )
