"""The adapters that servers of LoRA take, so that others are refused before they are made.

Written from their readers. vLLM: ``vllm/lora/peft_helper.py``, ``lora_model.py``,
``model_manager.py`` and ``vllm/config/lora.py``. One scale for all modules, lora_alpha / r, which
folding makes 1; no tensors besides factors; a rank up to --max-lora-rank; no ``target_parameters``:
vLLM stacks the factors that PEFT writes for experts in an orientation that fits some models alone,
and breaks or drops them in others (its issues 41384, 52194, 52198). llama.cpp:
``convert_lora_to_gguf.py`` and ``src/llama-adapter.cpp``. One alpha over the rank of each tensor;
weights that have a name of their own in GGUF, which neither experts nor modules that PEFT wraps in
one another have; norms are skipped in silence; factors of Conv1D are transposed as if they were the
weight.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import get_args

from gam_merge._common.errors import GamMergeError
from gam_merge._lineup.lineup import Lineup
from gam_merge._lineup.options import Target
from gam_merge._read.layout import ConvLayout, EmbeddingLayout, ExpertsLayout

SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank


def rank_notes(lineup: Lineup) -> list[str]:
    """Return notes on ranks that not every server takes."""
    notes: list[str] = []
    if len(set(lineup.ranks.values())) > 1 and not lineup.format.mixed_ranks:
        notes.append(
            "modules have ranks of their own (rank_pattern): PEFT reads that, llama.cpp scales "
            "them wrongly"
        )
    if lineup.rank > SERVED_RANKS[-1]:
        notes.append(
            f"rank {lineup.rank} is more than the {SERVED_RANKS[-1]} that servers of LoRA take; "
            "cut it with --rank"
        )
    return notes


def check_target(lineup: Lineup, target: Target | None) -> tuple[str, ...]:
    """Return notes on serving the merge there.

    Raises GamMergeError, with what to change, if the server does not take it.
    """
    if target is None:
        return ()
    if target not in _CHECKS:
        names = ", ".join(repr(name) for name in get_args(Target))
        raise GamMergeError(f"target must be one of {names}, got {target!r}")
    if lineup.magnitude_dtype is not None:
        raise GamMergeError(
            f"{target} does not serve DoRA; --flatten-dora (flatten_dora=True) writes plain LoRA"
        )
    for extra in lineup.written_extras:
        kind = "whole embedding" if extra.kind == "embedding" else extra.kind
        raise _not_served(target, kind, extra.name)
    for name, layout in lineup.layouts.items():
        if isinstance(layout, ConvLayout):
            raise _not_served(target, "LoRA on convolutions", name)
        if isinstance(layout, ExpertsLayout) and layout.count > 1:
            raise _not_served(target, "LoRA on experts", lineup.owners[name])
    return tuple(_CHECKS[target](lineup))


def _not_served(target: str, kind: str, name: str) -> GamMergeError:
    return GamMergeError(
        f"{target} does not serve {kind} ({name}); leave out the adapters that have it, or use "
        "gam-merge fuse to merge the result into its base"
    )


def _check_vllm(lineup: Lineup) -> Iterator[str]:
    rank = lineup.rank
    if rank > SERVED_RANKS[-1]:
        raise GamMergeError(
            f"vllm serves ranks up to {SERVED_RANKS[-1]}, got {rank}; cut it with --rank (rank=)"
        )
    yield f"serve it with --max-lora-rank {max_lora_rank(rank)}"
    ends = _ends(lineup)
    if ends:
        yield (
            f"vllm serves LoRA on {' and '.join(ends)} for some models only, and says so when it "
            "loads it"
        )


def _check_llama_cpp(lineup: Lineup) -> Iterator[str]:
    for name in lineup.layouts:
        if lineup.owners[name] != name:
            raise _not_served("llama.cpp", "LoRA on modules that PEFT wraps in one another", name)
        if lineup.ranks[name] != lineup.rank:
            raise GamMergeError(
                f"llama.cpp scales modules of lower rank ({name}) wrongly; leave --per-module-rank "
                "out"
            )
    if any(adapter.transposed for adapter in lineup.adapters):
        raise _not_served("llama.cpp", "LoRA on Conv1D", "fan_in_fan_out")
    if "lm_head" in _ends(lineup):
        yield "llama.cpp serves LoRA on lm_head unless the model ties it to its embedding"


_CHECKS: Mapping[str, Callable[[Lineup], Iterator[str]]] = {
    "vllm": _check_vllm,
    "llama.cpp": _check_llama_cpp,
}


def _ends(lineup: Lineup) -> list[str]:
    """Return the last names of the embeddings and the head, as far as they are adapted."""
    names: set[str] = set()
    for name, layout in lineup.layouts.items():
        last = name.rpartition(".")[2]
        if isinstance(layout, EmbeddingLayout) or last == "lm_head":
            names.add(last)
    return sorted(names)


def max_lora_rank(rank: int) -> int:
    """Return the least --max-lora-rank of vLLM for a rank; the rank itself if it is too high."""
    for served in SERVED_RANKS:
        if served >= rank:
            return served
    return rank
