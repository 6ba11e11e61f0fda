"""The adapters that servers and other readers of LoRA take, so that others are refused beforehand.

Written from their sources. vLLM: ``vllm/lora/peft_helper.py``, ``lora_model.py``,
``model_manager.py`` and ``vllm/config/lora.py``. One scale for all modules, lora_alpha / r, which
folding makes 1; no tensors besides factors; a rank up to --max-lora-rank; no ``target_parameters``:
vLLM stacks the factors that PEFT writes for experts in an orientation that fits some models alone,
and breaks or drops them in others (its issues 41384, 52194, 52198). SGLang:
``python/sglang/srt/lora/lora_config.py``, ``lora_manager.py``, ``mem_pool.py`` and ``utils.py``.
One scale, lora_alpha / r; factors of each module as large as the rank of the config; experts under
names of their own, which PEFT's factors of all experts together do not have. llama.cpp:
``convert_lora_to_gguf.py`` and ``src/llama-adapter.cpp``. One alpha over the rank of each tensor;
weights that have a name of their own in GGUF, which neither experts nor modules that PEFT wraps in
one another have; norms are skipped in silence; factors of Conv1D are transposed as if they were the
weight. Ollama: ``convert/convert.go`` and ``convert_llama_adapter.go``, which turn PEFT's format
into GGUF for bases of the architectures llama and gemma2: seven kinds of linear layers by name, a
factor that is higher than wide where it should not be taken for transposed, then as llama.cpp; and
ollama#14969, by which version 0.34.1 makes no model from an adapter any more.

MLX-LM: ``mlx_lm/tuner/utils.py`` (0.32). One rank and one scale, which the format itself keeps to.
diffusers: ``loaders/lora_pipeline.py``, ``lora_conversion_utils.py`` and ``peft.py`` (0.42).
Its own names and, of kohya's, those that begin with one of a few prefixes: a file of Stable
Diffusion with any other key is loaded as nothing, without an error. ComfyUI: ``comfy/lora.py`` and
``comfy/weight_adapter/lora.py``. Both grammars of image models, alpha / r per module, and 1 without
an alpha; modules that the loaded model does not have are skipped, with a line in the log.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from gam_merge._common.errors import GamMergeError
from gam_merge._lineup.lineup import Lineup
from gam_merge._lineup.options import Target
from gam_merge._read.format import Format
from gam_merge._read.formats import format_names
from gam_merge._read.layout import ConvLayout, EmbeddingLayout, ExpertsLayout

SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank
_LINEAR_OF_OLLAMA = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
# What diffusers converts of kohya's names; other pipelines than Flux need the first four.
_KOHYA_OF_DIFFUSERS = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_transformer_")


@dataclass(frozen=True)
class _Server:
    """A server or another reader of LoRA.

    Attributes:
        formats: the names of those that it reads.
        check: yields notes; raises GamMergeError for what the server does not take.
        convolutions: whether it takes LoRA on them.
    """

    formats: tuple[str, ...]
    check: Callable[[Lineup], Iterator[str]]
    convolutions: bool = False


def rank_notes(lineup: Lineup) -> list[str]:
    """Return notes on ranks that not every server takes."""
    if lineup.format.mixed_ranks:  # a format of image models, whose readers take any rank
        return []
    notes: list[str] = []
    if len(set(lineup.ranks.values())) > 1:
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
    if target not in _SERVERS:
        names = ", ".join(repr(name) for name in get_args(Target))
        raise GamMergeError(f"target must be one of {names}, got {target!r}")
    server = _SERVERS[target]
    _check_format(target, server, lineup.format)
    if lineup.magnitude_dtype is not None:
        raise GamMergeError(
            f"{target} does not serve DoRA; --flatten-dora (flatten_dora=True) writes plain LoRA"
        )
    for extra in lineup.written_extras:
        kind = "whole embedding" if extra.kind == "embedding" else extra.kind
        raise _not_served(target, kind, extra.name)
    for name, layout in lineup.layouts.items():
        if isinstance(layout, ConvLayout) and not server.convolutions:
            raise _not_served(target, "LoRA on convolutions", name)
        if isinstance(layout, ExpertsLayout) and layout.count > 1:
            raise _not_served(target, "LoRA on experts", lineup.owners[name])
    return tuple(server.check(lineup))


def _check_format(target: str, server: _Server, form: Format) -> None:
    if form.name in server.formats:
        return
    known = [name for name in server.formats if name in format_names()]
    raise GamMergeError(
        f"{target} reads the format {' and '.join(known)}, not {form.name}; choose "
        f"--format {known[0]} (format={known[0]!r})"
    )


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
    yield from _notes_on_ends(lineup, "vllm")


def _check_sglang(lineup: Lineup) -> Iterator[str]:
    for name, rank in lineup.ranks.items():
        if rank != lineup.rank:
            raise GamMergeError(
                f"sglang reads one rank for all modules, but {name} has {rank} of {lineup.rank}; "
                "leave --per-module-rank out"
            )
    yield f"serve it with --max-lora-rank {lineup.rank} or more"
    yield from _notes_on_ends(lineup, "sglang")


def _check_llama_cpp(lineup: Lineup) -> Iterator[str]:
    _check_gguf(lineup, "llama.cpp")
    if "lm_head" in _ends(lineup):
        yield "llama.cpp serves LoRA on lm_head unless the model ties it to its embedding"


def _check_ollama(lineup: Lineup) -> Iterator[str]:
    _check_gguf(lineup, "ollama")
    yield "ollama makes no model from an adapter since 0.34.1; make it with an earlier version"
    if lineup.format.name != "peft":
        return
    for bucket in lineup.buckets:
        name = bucket.names[0]
        if lineup.ranks[name] > min(bucket.shape):
            raise GamMergeError(
                f"ollama takes factors of a rank above the sides of a layer ({name}: "
                f"{bucket.shape}) for transposed, got {lineup.ranks[name]}; cut it with --rank "
                "(rank=)"
            )
    for name in lineup.names:
        if not name.endswith(_LINEAR_OF_OLLAMA):
            raise _not_served(
                "ollama", "LoRA on other modules than q, k, v, o, gate, up, down", name
            )
    yield "ollama converts adapters of PEFT for bases of the architectures llama and gemma2 only"


def _check_mlx(lineup: Lineup) -> Iterator[str]:
    yield from ()


def _check_diffusers(lineup: Lineup) -> Iterator[str]:
    if lineup.format.name == "kohya":
        for name in lineup.names:
            if not name.startswith(_KOHYA_OF_DIFFUSERS):
                raise GamMergeError(
                    f"diffusers does not convert {name} of kohya's format; leave out the adapters "
                    "that have it"
                )
        return
    if len(set(lineup.ranks.values())) > 1:
        yield "diffusers reads modules of unlike ranks since diffusers#14409 (August 2026)"
    if any(name.startswith("diffusion_model.") for name in lineup.names):
        yield "diffusers converts names under diffusion_model for some pipelines only"


def _check_comfyui(lineup: Lineup) -> Iterator[str]:
    yield "comfyui skips modules that its model does not have: 'lora key not loaded' in its log"


def _check_gguf(lineup: Lineup, target: str) -> None:
    """Raise GamMergeError for what an adapter of llama.cpp cannot hold."""
    for name in lineup.layouts:
        if lineup.owners[name] != name:
            raise _not_served(target, "LoRA on modules that PEFT wraps in one another", name)
        if lineup.ranks[name] != lineup.rank:
            raise GamMergeError(
                f"{target} scales modules of lower rank ({name}) wrongly; leave --per-module-rank "
                "out"
            )
    if any(adapter.transposed for adapter in lineup.adapters):
        raise _not_served(target, "LoRA on Conv1D", "fan_in_fan_out")


_IMAGE_MODELS = ("diffusers", "kohya")
_SERVERS: Mapping[str, _Server] = {
    "vllm": _Server(("peft",), _check_vllm),
    "sglang": _Server(("peft",), _check_sglang),
    "llama.cpp": _Server(("peft", "gguf"), _check_llama_cpp),
    "ollama": _Server(("peft", "gguf"), _check_ollama),
    "mlx": _Server(("mlx",), _check_mlx),
    "diffusers": _Server(_IMAGE_MODELS, _check_diffusers, convolutions=True),
    "comfyui": _Server(_IMAGE_MODELS, _check_comfyui, convolutions=True),
}


def _notes_on_ends(lineup: Lineup, target: str) -> Iterator[str]:
    ends = _ends(lineup)
    if ends:
        yield (
            f"{target} serves LoRA on {' and '.join(ends)} for some models only, and says so when "
            "it loads it"
        )


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
