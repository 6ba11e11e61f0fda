"""Tensors that are not factors: trained biases, modules saved whole, embeddings of some tokens.

Each is merged by the weighted mean over the adapters that have it. Most are new values of the
base's parameters, so that an adapter without one does not affect it; only ``lora_bias`` is added
to the base and can count as zero.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._read.adapter import Adapter, Extra, ExtraKind, LoraModule
from gam_merge._read.layout import EmbeddingLayout, ExpertsLayout

_NEXT_TO_FACTORS = ("bias", "lora_bias", "base_weight")  # a module may have these and factors


@dataclass(frozen=True)
class LineupExtra:
    """A tensor of the output: ``members[k]`` of adapter ``adapters[k]``. Without members zero."""

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


def line_up_extras(
    adapters: Sequence[Adapter], modules: Mapping[str, LoraModule], dtype: torch.dtype | None
) -> tuple[LineupExtra, ...]:
    """Line up the extras of the adapters.

    modules: those of the merge. dtype: of the output if the user named one; otherwise each extra
    keeps the narrowest that holds it in every adapter.

    Reads no tensor. Raises GamMergeError if two adapters do not mean the same by a name.
    """
    _check_tokens(adapters)
    names = sorted(set().union(*(adapter.extras for adapter in adapters)))
    extras = [_line_up_extra(adapters, name, dtype) for name in names]
    for extra in extras:
        owner = extra.name.rpartition(".")[0].removesuffix(".token_adapter")
        if extra.kind not in _NEXT_TO_FACTORS and owner in modules:
            raise GamMergeError(
                f"{owner} has LoRA factors in one adapter and {extra.name} ({extra.kind}) in "
                "another; leave one of them out"
            )
    if any(extra.is_delta for extra in extras):
        extras += _zero_biases({extra.name: extra for extra in extras}, modules)
    return tuple(sorted(extras, key=lambda extra: extra.name))


def _line_up_extra(
    adapters: Sequence[Adapter], name: str, dtype: torch.dtype | None
) -> LineupExtra:
    holders = tuple(i for i, adapter in enumerate(adapters) if name in adapter.extras)
    members = tuple(adapters[i].extras[name] for i in holders)
    first = members[0]
    for i, member in zip(holders, members, strict=True):
        if member.tensor.shape != first.tensor.shape:
            raise GamMergeError(
                f"tensor {name} is {first.tensor.shape} in {adapters[holders[0]].source} and "
                f"{member.tensor.shape} in {adapters[i].source}; leave one of them out"
            )
    narrowest = reduce(torch.promote_types, [member.tensor.dtype for member in members])
    # The same parameter may have been trained as a bias in one and with its module in another.
    kinds = {member.kind for member in members}
    kind: ExtraKind = "modules_to_save" if "modules_to_save" in kinds else first.kind
    if dtype is None or not narrowest.is_floating_point:  # a counter stays one
        dtype = narrowest
    return LineupExtra(name, kind, first.tensor.shape, dtype, holders, members)


def _check_tokens(adapters: Sequence[Adapter]) -> None:
    """Raise GamMergeError unless rows of trained tokens stand for the same tokens."""
    trained: Adapter | None = None
    for adapter in adapters:
        if not any(extra.kind == "trainable_tokens" for extra in adapter.extras.values()):
            continue
        trained = trained or adapter
        if adapter.tokens != trained.tokens:
            raise GamMergeError(
                f"{trained.source} and {adapter.source} train different tokens "
                "(trainable_token_indices); leave one of them out"
            )


def _zero_biases(
    extras: Mapping[str, LineupExtra], modules: Mapping[str, LoraModule]
) -> Iterator[LineupExtra]:
    """Yield a zero bias per module where no adapter has one: a config promises it for all."""
    dtype = next(extra.dtype for extra in extras.values() if extra.is_delta)
    for name, module in sorted(modules.items()):
        if isinstance(module.layout, EmbeddingLayout | ExpertsLayout):
            raise GamMergeError(
                f"lora_bias needs linear layers, but {name} is {module.layout}; leave the adapters "
                "with lora_bias out"
            )
        bias = f"{name}.lora_B.bias"
        if bias not in extras:
            yield LineupExtra(bias, "lora_bias", (module.b.shape[0],), dtype, (), ())


def extra_notes(extras: Sequence[LineupExtra], adapters: int) -> Iterator[str]:
    """Yield a note for each kind of extra that is not merged as a user may expect."""
    left_out = [extra.name for extra in extras if extra.kind == "base_weight"]
    if left_out:
        yield f"left out, as it belongs to the base model: {', '.join(left_out)}"
    kinds = {extra.kind for extra in extras} - {"base_weight", "lora_bias"}
    for kind in sorted(kinds):
        partial = [
            extra for extra in extras if extra.kind == kind and len(extra.adapters) < adapters
        ]
        if partial:
            first = f"{partial[0].name} (in {len(partial[0].adapters)} of {adapters})"
            more = f" and {len(partial) - 1} more" if len(partial) > 1 else ""
            yield f"{kind} is averaged over the adapters that have it: {first}{more}"
