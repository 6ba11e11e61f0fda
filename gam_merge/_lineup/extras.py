"""Tensors that are no factors: trained biases, modules saved whole, embeddings of some tokens.

Each is merged by the weighted mean over the adapters that have it. Most are new values of the base's parameters, so
that an adapter without one has no say about it; only ``lora_bias`` is added to the base and can count as zero.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import blocks, dtype_name
from gam_merge._read.adapter import Adapter, Extra, ExtraKind, LoraModule
from gam_merge._read.layout import EmbeddingLayout, ExpertsLayout


@dataclass(frozen=True)
class PlannedExtra:
    """A tensor of the output: ``members[k]`` of adapter ``adapters[k]``. Without members it is zero."""

    name: str
    kind: ExtraKind
    shape: tuple[int, ...]
    dtype: torch.dtype
    adapters: tuple[int, ...]
    members: tuple[Extra, ...]

    @property
    def is_delta(self) -> bool:
        """Whether it is added to the base, so that zero stands for an adapter without it."""
        return self.kind == "lora_bias"

    @property
    def module(self) -> str:
        """The module that it belongs to."""
        return self.name.removesuffix(".bias").removesuffix(".lora_B")


def plan_extras(
    adapters: Sequence[Adapter], modules: Mapping[str, LoraModule], dtype: torch.dtype | None
) -> tuple[PlannedExtra, ...]:
    """Line up the extras of the adapters. ``modules`` are those of the merge; ``dtype`` is that of the output if the
    user has one, else each extra keeps the narrowest that holds it in every adapter.

    Reads no tensor. Raises GamMergeError if two adapters do not mean the same by a name.
    """
    _check_tokens(adapters)
    names = sorted({name for adapter in adapters for name in adapter.extras})
    planned = [_plan_extra(adapters, name, dtype) for name in names]
    for extra in planned:
        owner = extra.name.rpartition(".")[0].removesuffix(".token_adapter")
        if extra.kind not in ("bias", "lora_bias", "base_weight") and owner in modules:
            raise GamMergeError(
                f"{owner} has LoRA factors in one adapter and {extra.name} ({extra.kind}) in another"
            )
    if any(extra.kind == "lora_bias" for extra in planned):
        planned += _zero_biases({extra.name: extra for extra in planned}, modules)
    return tuple(sorted(planned, key=lambda extra: extra.name))


def _plan_extra(adapters: Sequence[Adapter], name: str, dtype: torch.dtype | None) -> PlannedExtra:
    holders = tuple(i for i, adapter in enumerate(adapters) if name in adapter.extras)
    members = tuple(adapters[i].extras[name] for i in holders)
    first, narrowest = members[0], members[0].tensor.dtype
    for i, member in zip(holders, members, strict=True):
        narrowest = torch.promote_types(narrowest, member.tensor.dtype)
        if member.tensor.shape != first.tensor.shape:
            raise GamMergeError(
                f"tensor {name} is {first.tensor.shape} in {adapters[holders[0]].source} and {member.tensor.shape} in "
                f"{adapters[i].source}; leave one of them out"
            )
    # The same parameter may have been trained as a bias in one adapter and with its module in another.
    kind = next((m.kind for m in members if m.kind == "modules_to_save"), first.kind)
    return PlannedExtra(name, kind, first.tensor.shape, dtype or narrowest, holders, members)


def _check_tokens(adapters: Sequence[Adapter]) -> None:
    """Rows of trained tokens can be averaged only if they stand for the same tokens."""
    with_tokens = [
        a for a in adapters if any(extra.kind == "trainable_tokens" for extra in a.extras.values())
    ]
    for adapter in with_tokens[1:]:
        if adapter.config.get("trainable_token_indices") != with_tokens[0].config.get(
            "trainable_token_indices"
        ):
            raise GamMergeError(
                f"{with_tokens[0].source} and {adapter.source} train different tokens (trainable_token_indices); "
                "leave one of them out"
            )


def _zero_biases(
    planned: Mapping[str, PlannedExtra], modules: Mapping[str, LoraModule]
) -> Iterator[PlannedExtra]:
    """A config with lora_bias promises one for every module: zero where no adapter has it."""
    dtype = next(extra.dtype for extra in planned.values() if extra.kind == "lora_bias")
    for name, module in sorted(modules.items()):
        if isinstance(module.layout, EmbeddingLayout | ExpertsLayout):
            raise GamMergeError(
                f"module {name} is no linear layer, and another adapter has lora_bias: PEFT loads no both"
            )
        bias = f"{name}.lora_B.bias"
        if bias not in planned:
            yield PlannedExtra(bias, "lora_bias", (module.b.shape[0],), dtype, (), ())


def merge_extra(extra: PlannedExtra, weights: Sequence[float], sources: Sequence[str]) -> Tensor:
    """The weighted sum of the members, their scale folded in, in pieces so that one tensor is held at a time.

    weights: one a member. Raises GamMergeError for NaN or Inf, in a source or from the dtype of the output.
    """
    out = torch.zeros(extra.shape, dtype=extra.dtype)
    for pieces in zip(*(blocks(member.tensor) for member in extra.members), strict=True):
        total = torch.zeros((), dtype=torch.float64)
        for i, (member, w, (_, piece)) in enumerate(
            zip(extra.members, weights, pieces, strict=True)
        ):
            if not piece.isfinite().all():
                raise GamMergeError(
                    f"{sources[extra.adapters[i]]}: tensor {extra.name} has NaN or Inf; leave it out"
                )
            total = total + w * member.scale * piece.double()
        out.view(-1)[pieces[0][0]] = total.to(extra.dtype)
    if not out.isfinite().all():
        dtype = dtype_name(extra.dtype)
        raise GamMergeError(
            f"tensor {extra.name} of the merge does not fit into {dtype}; write bfloat16 or float32"
        )
    return out


def check_equal(extra: PlannedExtra, sources: Sequence[str]) -> None:
    """Raises GamMergeError unless all members hold the same values."""
    for i, other in zip(extra.adapters[1:], extra.members[1:], strict=True):
        for (_, x), (_, y) in zip(
            blocks(extra.members[0].tensor), blocks(other.tensor), strict=True
        ):
            if not torch.equal(x, y):
                raise GamMergeError(
                    f"tensor {extra.name} of the base differs between {sources[extra.adapters[0]]} and {sources[i]}; "
                    "adapters of different base models cannot be merged"
                )


def extra_notes(extras: Sequence[PlannedExtra], adapters: int) -> Iterator[str]:
    """What is not merged as a user may expect."""
    if left_out := [extra.name for extra in extras if extra.kind == "base_weight"]:
        yield f"left out, as it belongs to the base model: {', '.join(left_out)}"
    for kind in sorted({extra.kind for extra in extras} - {"base_weight", "lora_bias"}):
        partial = [
            extra for extra in extras if extra.kind == kind and len(extra.adapters) < adapters
        ]
        if partial:
            some = f"{partial[0].name} (in {len(partial[0].adapters)} of {adapters})"
            more = f" and {len(partial) - 1} more" if len(partial) > 1 else ""
            yield f"{kind} is averaged over the adapters that have it: {some}{more}"
