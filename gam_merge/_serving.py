"""What servers of LoRA take, so that a merge for one of them is refused before it is made and not when it is served.

vLLM: ``vllm/lora/peft_helper.py`` and ``vllm/config/lora.py``. One scale for all modules, lora_alpha / r, which
folding makes 1; no tensors beside factors of linear layers and embeddings; a rank up to --max-lora-rank.
"""

from gam_merge._errors import GamMergeError
from gam_merge._layout import ConvLayout
from gam_merge._plan import VLLM_RANKS, Plan

TARGETS = ("vllm",)


def check_target(plan: Plan, target: str | None) -> tuple[str, ...]:
    """What to say of serving the merge there. Raises GamMergeError, with what to change, if it is not taken."""
    if target is None:
        return ()
    if target not in TARGETS:
        raise GamMergeError(f"target {target!r} is not known; there are: {', '.join(TARGETS)}")
    if plan.magnitude_dtype is not None:
        raise GamMergeError("vllm takes no DoRA; --flatten-dora (flatten_dora=True) writes plain LoRA")
    for extra in plan.written_extras:
        raise GamMergeError(f"vllm takes no {extra.kind} ({extra.name}); leave the adapters that trained it out")
    for name, layout in plan.layouts.items():
        if isinstance(layout, ConvLayout):
            raise GamMergeError(f"vllm takes no LoRA on convolutions ({name}); leave the adapters with it out")
    if plan.rank > VLLM_RANKS[-1]:
        raise GamMergeError(f"vllm takes ranks up to {VLLM_RANKS[-1]}, not {plan.rank}; cut it with --rank (rank=)")
    return (f"serve it with --max-lora-rank {max_lora_rank(plan.rank)}",)


def max_lora_rank(rank: int) -> int:
    """The least that vLLM has to be told for adapters of this rank; the rank itself if it takes none so high."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), rank)
