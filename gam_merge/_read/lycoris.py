"""LyCORIS: LoCon with a mid, LoHa and LoKr, read as the plain LoRA that they are.

Their factors lie under the stems of kohya's or of diffusers' grammar, and make

LoCon   up (out, r, 1, 1), mid (r, r, *kernel), down (r, in, 1, 1)
            rank r: up, and mid times down
LoHa    hada_w1_a (out, r), hada_w1_b (r, in), hada_w2_a, hada_w2_b
            rank r^2: the entrywise product of two products
LoKr    lokr_w1 (l, m) or lokr_w1_a (l, r), lokr_w1_b (r, m); lokr_w2 (k, n) likewise
            rank(w1) rank(w2): the Kronecker product, (l k, m n)

A convolution of Tucker form has a core (r, r, *kernel), ``hada_t1``, ``hada_t2`` or ``lokr_t2``,
and then ``_a`` is (r, out). Without a core, LoHa and decomposed LoKr flatten the kernel into the
columns and store its shape nowhere: such a module is a matrix here, with the same product.

All of them are exact, but for a LoKr of two full factors whose rank is beyond ``MAX_RANK``.
Tensor legend: ``m`` out, ``n`` in, ``r`` rank.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import DerivedTensor, LazyTensor, read

Parts = Mapping[str, LazyTensor]  # by role
Kind = Literal["LoCon", "LoHa", "LoKr"]

# What a LoKr of two full factors is cut to: it may have the full rank of its module, and would
# become a file of the size of the model. Few LoRAs are trained at more.
MAX_RANK = 256

_MID = "mid"
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_LOKR = (
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
)  # fmt: skip
# How a key ends -> the role of its tensor.
ROLES: Mapping[str, str] = {"lora_mid.weight": _MID, **{role: role for role in (*_LOHA, *_LOKR)}}

_ON_BASE = "a change that depends on the base weights"
_FULL = "a weight in full size"
# Tensors of such files that are not factors. Value: what they are instead.
REFUSED: Mapping[str, str] = {
    "dora_scale": "DoRA, which is supported only in PEFT's format",
    "diff": _FULL,
    "diff_b": "a trained bias",
    "w_norm": "the trained weight of a norm",
    "b_norm": "the trained bias of a norm",
    "set_weight": "a weight that replaces that of the base",
    "reshape_weight": "the new shape of a weight",
    "on_input": f"(IA)^3, {_ON_BASE}",
    **dict.fromkeys(("a1.weight", "a2.weight", "b1.weight", "b2.weight"), f"GLoRA, {_ON_BASE}"),
    **dict.fromkeys(("oft_blocks", "oft_diag", "rescale"), f"OFT or BOFT, {_ON_BASE}"),
    **dict.fromkeys(("q_layer.weight", "p_layer.weight", "lambda_layer"), f"T-LoRA, {_ON_BASE}"),
}


class Product(NamedTuple):
    """A weight as a product, b a."""

    b: Tensor  # (m, r)
    a: Tensor  # (r, n, *kernel)

    @property
    def stored_b(self) -> Tensor:
        """B as plain LoRA stores it: (m, r, 1, ...)."""
        return self.b.reshape(*self.b.shape, *(1 for _ in self.a.shape[2:]))


@dataclass(frozen=True)
class LowRank:
    """A module of LyCORIS as plain LoRA.

    Attributes:
        a: (r, in, *kernel).
        b: (out, r), or (out, r, 1, ...) with a kernel.
        alpha_rank: what alpha is divided by; None where alpha changes nothing.
        kept: the share of the squared norm that the factors hold.
    """

    a: LazyTensor
    b: LazyTensor
    alpha_rank: int | None
    kept: float = 1.0


def kind_of(roles: Collection[str]) -> Kind | None:
    """Return the kind of module that tensors of these roles are; None for a plain LoRA."""
    if any(role in _LOHA for role in roles):
        return "LoHa"
    if any(role in _LOKR for role in roles):
        return "LoKr"
    return "LoCon" if _MID in roles else None


def low_rank(where: str, name: str, parts: Parts) -> LowRank:
    """Return a module as plain LoRA, its factors computed when they are read.

    Raises GamMergeError for parts that are missing or do not fit.
    """
    parts = {role: tensor for role, tensor in parts.items() if role != "alpha"}
    kind = kind_of(parts)
    assert kind is not None
    _check_complete(where, name, kind, parts)
    roles, stored = tuple(parts), tuple(parts.values())
    try:
        shapes = _product(roles, *(torch.empty(x.shape, device="meta") for x in stored))
    except (RuntimeError, ValueError, IndexError) as error:
        listed = ", ".join(f"{role} {tensor.shape}" for role, tensor in parts.items())
        raise GamMergeError(
            f"{where}: module {name} has factors of {kind} that do not fit together: {listed}"
        ) from error
    dtype = reduce(torch.promote_types, (x.dtype for x in stored), torch.float32)
    a = DerivedTensor(tuple(shapes.a.shape), dtype, partial(_stored_a, roles), stored)
    b = DerivedTensor(tuple(shapes.stored_b.shape), dtype, partial(_stored_b, roles), stored)
    kept = _share_kept(where, name, parts) if _is_cut(roles, stored) else 1.0
    return LowRank(a, b, _alpha_rank(parts), kept)


def notes(kinds: Sequence[Kind], ranks: Sequence[int], kept: Sequence[float]) -> tuple[str, ...]:
    """Return what a user should know of the modules that were read as plain LoRA.

    Of each module: its kind, its rank as LoRA, the share of its squared norm that was kept.
    """
    lines: list[str] = []
    for kind in sorted(set(kinds)):
        members = [i for i, other in enumerate(kinds) if other == kind]
        modules = "1 module" if len(members) == 1 else f"{len(members)} modules"
        rank = max(ranks[i] for i in members)
        lines.append(f"{modules} of {kind} read as plain LoRA of rank up to {rank}")
    cut = [share for share in kept if share < 1]
    if cut:
        lines.append(
            f"LoKr of two full factors is cut to rank {MAX_RANK}: {sum(cut) / len(cut):.1%} of the "
            f"squared norm kept on average over {len(cut)} modules, {min(cut):.1%} at worst"
        )
    return tuple(lines)


def _check_complete(where: str, name: str, kind: Kind, parts: Parts) -> None:
    """Raise GamMergeError unless a module has all factors of its kind, and no others."""
    if kind == "LoCon":
        needed, optional = ["down", "up", _MID], list[str]()
    elif kind == "LoHa":
        needed, optional = list(_LOHA[:4]), list[str]()
        if "hada_t1" in parts or "hada_t2" in parts:
            needed += _LOHA[4:]
    else:
        needed = []
        for factor in ("lokr_w1", "lokr_w2"):
            needed += [factor] if factor in parts else [f"{factor}_a", f"{factor}_b"]
        optional = [] if "lokr_w2" in parts else ["lokr_t2"]
    for role in needed:
        if role not in parts:
            raise GamMergeError(f"{where}: module {name} has no {role}; the file is incomplete")
    for role in parts:
        if role not in (*needed, *optional):
            raise GamMergeError(
                f"{where}: module {name} is {kind} by {needed[0]}, but has {role}, too"
            )


def _stored_a(roles: Sequence[str], *stored: Tensor) -> Tensor:
    return _product(roles, *stored).a


def _stored_b(roles: Sequence[str], *stored: Tensor) -> Tensor:
    return _product(roles, *stored).stored_b


def _product(roles: Sequence[str], *stored: Tensor) -> Product:
    """Return the weight that the factors of a module make, without its scale."""
    parts = dict(zip(roles, map(_wide, stored), strict=True))
    if _MID in parts:
        up, down = parts["up"].flatten(1), parts["down"].flatten(1)  # (m, r), (r, n)
        return _narrow(_tucker(up.mT, down, parts[_MID]))
    if kind_of(roles) == "LoHa":
        pair = _decomposed(parts, "hada_w1", "hada_t1"), _decomposed(parts, "hada_w2", "hada_t2")
        return _narrow(_hadamard(*pair))
    if _is_cut(roles, stored):
        return _largest_terms(parts["lokr_w1"], parts["lokr_w2"])
    small = _full_or_decomposed(parts, "lokr_w1", "")
    return _narrow(_kronecker(small, _full_or_decomposed(parts, "lokr_w2", "lokr_t2")))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _checked(b: Tensor, a: Tensor) -> Product:
    if b.ndim != 2 or a.ndim < 2 or b.shape[1] != a.shape[0] or 0 in (*b.shape, *a.shape):
        raise ValueError("not the factors of a product")
    return Product(b, a)


def _tucker(left: Tensor, right: Tensor, core: Tensor) -> Product:
    """Return the product of (r, m), (r, n) and a core (r, r, *kernel) between them."""
    return _checked(left.mT, torch.einsum("ij...,jn->in...", core, right))


def _decomposed(parts: Mapping[str, Tensor], name: str, core: str) -> Product:
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    return _tucker(a, b, parts[core]) if core in parts else _checked(a, b)


def _full_or_decomposed(parts: Mapping[str, Tensor], name: str, core: str) -> Product:
    return _times_one(parts[name]) if name in parts else _decomposed(parts, name, core)


def _times_one(weight: Tensor) -> Product:
    """Return a weight (m, n, *kernel) times the identity, on the side where that is smaller."""
    m, *columns = weight.shape
    flat = weight.flatten(1)
    if m <= flat.shape[1]:
        return _checked(torch.eye(m, dtype=weight.dtype, device=weight.device), weight)
    one = torch.eye(flat.shape[1], dtype=weight.dtype, device=weight.device)
    return _checked(flat, one.unflatten(1, columns))


def _hadamard(x: Product, y: Product) -> Product:
    """Return the entrywise product: each term of the one times each of the other."""
    if x.b.shape[0] != y.b.shape[0] or x.a.shape[1:] != y.a.shape[1:]:
        raise ValueError("products of unlike shapes")
    b = (x.b[:, :, None] * y.b[:, None]).flatten(1)  # (m, r r')
    a = (x.a[:, None] * y.a).flatten(0, 1)  # (r r', n, *kernel)
    return Product(b, a)


def _kronecker(x: Product, y: Product) -> Product:
    """Return the Kronecker product of a matrix and of a weight that may have a kernel."""
    if x.a.ndim != 2:
        raise ValueError("the first factor is not a matrix")
    matrix = x.a.reshape(*x.a.shape, *(1 for _ in y.a.shape[2:]))  # (r, n, 1, ...)
    b, a = y.b.contiguous(), y.a.contiguous()  # as kron needs them
    return Product(torch.kron(x.b.contiguous(), b), torch.kron(matrix, a))


def _narrow(product: Product) -> Product:
    """Return a product of no more terms than a matrix of its shape has ranks."""
    b, a = product
    flat = a.flatten(1)
    if len(a) <= min(b.shape[0], flat.shape[1]):
        return product
    return _times_one((b @ flat).reshape(b.shape[0], *a.shape[1:]))


def _is_cut(roles: Sequence[str], stored: Sequence[Tensor | LazyTensor]) -> bool:
    """Tell whether a LoKr of two full factors may have more ranks than are read."""
    shapes = {role: tensor.shape for role, tensor in zip(roles, stored, strict=True)}
    if not {"lokr_w1", "lokr_w2"} <= shapes.keys():
        return False
    rank = 1
    for role in ("lokr_w1", "lokr_w2"):
        rows, *columns = shapes[role]
        rank *= min(rows, prod(columns))
    return rank > MAX_RANK


def _largest_terms(w1: Tensor, w2: Tensor) -> Product:
    """Return the best product of rank ``MAX_RANK`` for the Kronecker product of two full factors.

    Its singular values are the products of theirs, and its singular vectors Kronecker products.
    """
    if w1.ndim != 2:
        raise ValueError("the first factor is not a matrix")
    u1, s1, v1 = torch.linalg.svd(w1.double(), full_matrices=False)
    u2, s2, v2 = torch.linalg.svd(w2.flatten(1).double(), full_matrices=False)
    s = torch.outer(s1, s2).flatten()
    order = s.argsort(descending=True, stable=True)[:MAX_RANK]
    i, j = order // len(s2), order % len(s2)
    root = s[order].sqrt()
    b = (u1[:, None, i] * u2[:, j]).flatten(0, 1) * root  # (m, r)
    a = (v1[i, :, None] * v2[j, None]).flatten(1) * root[:, None]  # (r, n * kernel)
    columns = (w1.shape[1] * w2.shape[1], *w2.shape[2:])
    return _checked(b.to(w1.dtype), a.unflatten(1, columns).to(w1.dtype))


def _share_kept(where: str, name: str, parts: Parts) -> float:
    """Return the share of its squared norm that a LoKr of two full factors keeps when it is cut.

    The two are small, and read for it. Raises GamMergeError for numbers that are not finite.
    """
    values: list[Tensor] = []
    for role in ("lokr_w1", "lokr_w2"):
        matrix = read(parts[role]).double().flatten(1)
        if not matrix.isfinite().all():
            raise GamMergeError(
                f"{where}: module {name} has NaN or Inf in {role}; leave this adapter out"
            )
        values.append(torch.linalg.svdvals(matrix))
    energy = torch.outer(*values).flatten().square()
    total = energy.sum()
    return float(energy.topk(MAX_RANK).values.sum() / total) if total > 0 else 1.0


def _alpha_rank(parts: Parts) -> int | None:
    """Return what alpha is divided by: the rank of a decomposed factor, if there is one."""
    for role in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if role in parts:
            return parts[role].shape[0]
    return None
