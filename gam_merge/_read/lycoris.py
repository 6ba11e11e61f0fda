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
from typing import Literal

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import DerivedTensor, LazyTensor, read
from gam_merge._read.lycoris_products import MAX_RANK, form_of, stored_a, stored_b

Parts = Mapping[str, LazyTensor]  # by role
Kind = Literal["LoCon", "LoHa", "LoKr"]

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
    try:
        form = form_of({role: tensor.shape for role, tensor in parts.items()})
    except ValueError as error:
        listed = ", ".join(f"{role} {tensor.shape}" for role, tensor in parts.items())
        raise GamMergeError(
            f"{where}: module {name} has factors of {kind} that do not fit together: {listed}"
        ) from error
    roles, stored = tuple(parts), tuple(parts.values())
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in stored), torch.float32)
    a = DerivedTensor(form.a, dtype, partial(stored_a, roles), stored)
    b = DerivedTensor(form.b, dtype, partial(stored_b, roles), stored)
    kept = _share_kept(where, name, parts) if form.is_cut else 1.0
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
