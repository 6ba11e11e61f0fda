"""Fused layers: the outputs of several layers of one input, one below the other in one weight.

Both ways are exact and leave the factors as they are, and none is read before it is needed.
Tensor legend: ``m`` out, ``n`` in, ``r`` rank; ``M`` and ``R`` are their sums over the layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import accumulate

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import DerivedTensor, LazyTensor, TensorRows
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._read.layout import Layout


def split(
    module: LoraModule, names: Sequence[str], shares: Sequence[int], adapter: Adapter
) -> dict[str, LoraModule]:
    """Return the layers that a fused layer is made of: A is shared, B is cut into rows.

    names: of the layers, from top to bottom. shares: their out / in. Raises GamMergeError for a
    layer that is not as wide as they are together.
    """
    _check(module, sum(shares), adapter)
    n = module.shape[1]
    layers: dict[str, LoraModule] = {}
    start = 0
    for name, share in zip(names, shares, strict=True):
        m = share * n
        b = TensorRows(module.b, start, m)  # (M, r) -> (m, r)
        layers[name] = replace(module, name=name, b=b, spelling="")
        start += m
    return layers


def fuse(
    name: str,
    layers: Mapping[str, LoraModule],
    names: Sequence[str],
    shares: Sequence[int],
    adapter: Adapter,
) -> LoraModule:
    """Return the fused layer of some layers: A is stacked, B is block diagonal, of rank R.

    Layers that share their A, since they were split before, share its rows again. One that is not
    there has rows of zeros in B, and unlike scales are folded into B.

    names: of all layers of the fused one, from top to bottom. shares: their out / in. Raises
    GamMergeError for a layer of another width.
    """
    present = [layers[layer] for layer in names if layer in layers]
    n = present[0].shape[1]
    tops = dict(zip(names, accumulate(share * n for share in (0, *shares)), strict=False))
    for layer, share in zip(names, shares, strict=True):
        if layer in layers:
            _check(layers[layer], share, adapter)
    if any(layer.shape[1] != n for layer in present):
        listed = ", ".join(f"{layer.name} {layer.shape}" for layer in present)
        raise GamMergeError(
            f"{adapter.source}: the layers of {name} must have one width in, got (out, in) of "
            f"{listed}"
        )
    factors = {id(layer.a): layer.a for layer in present}  # each once
    ranks = (0, *(a.shape[0] for a in factors.values()))
    *lefts, rank = accumulate(ranks)
    columns = dict(zip(factors, lefts, strict=True))
    scale, gains = 1.0, [layer.scale for layer in present]
    if len(set(gains)) == 1:
        scale, gains = gains[0], [1.0] * len(gains)
    b = _blocks(
        [layer.b for layer in present],
        shape=(sum(shares) * n, rank),  # (M, R)
        corners=[(tops[layer.name], columns[id(layer.a)]) for layer in present],
        gains=gains,
    )
    kept = min(layer.kept for layer in present)
    return LoraModule(name, _stacked(list(factors.values())), b, scale, kept=kept)


def with_halves_swapped(module: LoraModule, name: str, adapter: Adapter) -> LoraModule:
    """Return a layer whose upper and lower half change places, under another name."""
    _check_plain(module, adapter)
    if module.shape[0] % 2:
        raise GamMergeError(
            f"{adapter.source}: module {module.name} must have an even width out, of scale and "
            f"shift, got {module.shape[0]}"
        )
    b = DerivedTensor(module.b.shape, module.b.dtype, _swapped, (module.b,))
    return replace(module, name=name, b=b, spelling="")


def _check(module: LoraModule, share: int, adapter: Adapter) -> None:
    """Raise GamMergeError unless a module is a linear layer of a width out."""
    _check_plain(module, adapter)
    m, n = module.shape
    if m != share * n:
        raise GamMergeError(
            f"{adapter.source}: module {module.name} must be {share * n} wide, {share} times the "
            f"{n} that go in, to be fused or split; got (out, in) of {(m, n)}"
        )


def _check_plain(module: LoraModule, adapter: Adapter) -> None:
    if module.magnitude is not None:
        raise GamMergeError(
            f"{adapter.source}: module {module.name} uses DoRA, whose layers cannot be fused or "
            "split; flatten it first: --flatten-dora (flatten_dora=True), in its own format"
        )
    if type(module.layout) is not Layout:
        raise GamMergeError(
            f"{adapter.source}: module {module.name} is {module.layout}, and only linear layers "
            "can be fused or split; leave the adapters with it out"
        )


def _stacked(factors: Sequence[LazyTensor]) -> LazyTensor:
    """Return factors A (r, n), one below the other (R, n)."""
    if len(factors) == 1:
        return factors[0]
    rank = sum(factor.shape[0] for factor in factors)
    return DerivedTensor((rank, factors[0].shape[1]), _dtype(factors), _stack, tuple(factors))


def _blocks(
    blocks: Sequence[LazyTensor],
    *,
    shape: tuple[int, int],
    corners: Sequence[tuple[int, int]],
    gains: Sequence[float],
) -> LazyTensor:
    """Return a matrix of zeros with each block, times its gain, at its upper left corner.

    A gain other than 1 is not rounded to a dtype of half precision, nor does it overflow there.
    """
    dtype = _dtype(blocks)
    if any(gain != 1 for gain in gains):
        dtype = torch.promote_types(dtype, torch.float32)
    place = partial(_place, shape=shape, corners=tuple(corners), gains=tuple(gains), dtype=dtype)
    return DerivedTensor(shape, dtype, place, tuple(blocks))


def _dtype(tensors: Sequence[LazyTensor]) -> torch.dtype:
    return reduce(torch.promote_types, [tensor.dtype for tensor in tensors])


def _swapped(b: Tensor) -> Tensor:
    return b.roll(len(b) // 2, dims=0)


def _stack(*factors: Tensor) -> Tensor:
    return torch.cat(factors)


def _place(
    *blocks: Tensor,
    shape: tuple[int, int],
    corners: Sequence[tuple[int, int]],
    gains: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    matrix = torch.zeros(shape, dtype=dtype)
    for block, (top, left), gain in zip(blocks, corners, gains, strict=True):
        m, r = block.shape
        matrix[top : top + m, left : left + r] = gain * block.to(dtype)
    return matrix
