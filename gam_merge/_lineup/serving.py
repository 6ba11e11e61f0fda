"""What servers of LoRA take, so that a merge for one of them is refused before it is made and not when it is served.

Written from their readers. vLLM: ``vllm/lora/peft_helper.py``, ``lora_model.py``, ``model_manager.py`` and
``vllm/config/lora.py``. One scale for all modules, lora_alpha / r, which folding makes 1; no tensors beside factors; a
rank up to --max-lora-rank; of experts the pair gate_up_proj and down_proj, counted by the rank of the config.
llama.cpp: ``convert_lora_to_gguf.py`` and ``src/llama-adapter.cpp``. One alpha over the rank of each tensor; weights
that have a name of their own in GGUF, which neither experts nor what PEFT wraps in one another do; norms are skipped
in silence; factors of Conv1D are transposed as if they were the weight.
"""

from collections.abc import Callable, Iterator, Mapping

from gam_merge._common.errors import GamMergeError
from gam_merge._lineup.lineup import VLLM_RANKS, Plan
from gam_merge._read.layout import ConvLayout, EmbeddingLayout, ExpertsLayout
from gam_merge._read.peft import owner

_PAIR_OF_EXPERTS = ("down_proj", "gate_up_proj")


def check_target(plan: Plan, target: str | None) -> tuple[str, ...]:
    """What to say of serving the merge there. Raises GamMergeError, with what to change, if it is not taken."""
    if target is None:
        return ()
    if target not in _TARGETS:
        raise GamMergeError(f"target {target!r} is not known; there are: {', '.join(_TARGETS)}")
    if plan.magnitude_dtype is not None:
        raise GamMergeError(
            f"{target} takes no DoRA; --flatten-dora (flatten_dora=True) writes plain LoRA"
        )
    for extra in plan.written_extras:
        raise _not_taken(
            target, "whole embedding" if extra.kind == "embedding" else extra.kind, extra.name
        )
    for name, layout in plan.layouts.items():
        if isinstance(layout, ConvLayout):
            raise _not_taken(target, "LoRA on convolutions", name)
    return tuple(_TARGETS[target](plan))


def _not_taken(target: str, what: str, name: str) -> GamMergeError:
    return GamMergeError(
        f"{target} takes no {what} ({name}); leave the adapters with it out, or gam-merge fuse the merge into its base"
    )


def _check_vllm(plan: Plan) -> Iterator[str]:
    for name, layout in plan.layouts.items():
        if isinstance(layout, ExpertsLayout) and layout.count > 1:
            if layout.parameters != _PAIR_OF_EXPERTS:
                raise _not_taken(
                    "vllm",
                    f"{' and '.join(layout.parameters)} without the other of experts",
                    owner(name),
                )
            if plan.ranks[name] != plan.rank:
                raise GamMergeError(
                    f"vllm takes experts ({name}) at one rank alone; leave --per-module-rank out"
                )
    if plan.rank > VLLM_RANKS[-1]:
        raise GamMergeError(
            f"vllm takes ranks up to {VLLM_RANKS[-1]}, not {plan.rank}; cut it with --rank (rank=)"
        )
    yield f"serve it with --max-lora-rank {max_lora_rank(plan.rank)}"
    if ends := _ends(plan):
        yield f"vllm takes LoRA on {' and '.join(ends)} for some models alone, and says so when it loads it"


def _check_llama_cpp(plan: Plan) -> Iterator[str]:
    for name, layout in plan.layouts.items():
        if isinstance(layout, ExpertsLayout) and layout.count > 1:
            raise _not_taken("llama.cpp", "LoRA on experts", owner(name))
        if owner(name) != name:
            raise _not_taken("llama.cpp", "LoRA on what PEFT wraps in one another", name)
        if plan.ranks[name] != plan.rank:
            raise GamMergeError(
                f"llama.cpp scales modules of lower rank ({name}) wrongly; leave --per-module-rank out"
            )
    if any(adapter.config.get("fan_in_fan_out") for adapter in plan.adapters):
        raise _not_taken("llama.cpp", "LoRA on Conv1D", "fan_in_fan_out")
    if "lm_head" in _ends(plan):
        yield "llama.cpp takes LoRA on lm_head unless the model ties it to its embedding"


_TARGETS: Mapping[str, Callable[[Plan], Iterator[str]]] = {
    "vllm": _check_vllm,
    "llama.cpp": _check_llama_cpp,
}


def _ends(plan: Plan) -> list[str]:
    """The embeddings and the head, as far as they are adapted: their last names."""
    names = {name.rpartition(".")[2]: layout for name, layout in plan.layouts.items()}
    return sorted(
        name
        for name, layout in names.items()
        if isinstance(layout, EmbeddingLayout) or name == "lm_head"
    )


def max_lora_rank(rank: int) -> int:
    """The least that vLLM has to be told for adapters of this rank; the rank itself if it takes none so high."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), rank)
