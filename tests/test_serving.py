"""What readers besides vLLM and llama.cpp take: each refusal in one line, with what to change."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from helpers import adapter, random_factors
from variants import VARIANTS, base, save

import gam_merge as gm
from gam_cli import _options
from gam_merge._lineup.options import Target

Q, K, GATE = (f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj"))  # fmt: skip


def peft(*names: str, shape: tuple[int, int] = (24, 16), rank: int = 2) -> gm.Adapter:
    generator = torch.Generator().manual_seed(0)
    return adapter({name: random_factors(generator, *shape, rank) for name in names})


def kohya(*stems: str, kernel: tuple[int, ...] = ()) -> gm.Adapter:
    return _file(".lora_down.weight", ".lora_up.weight", stems, kernel)


def dotted(*names: str, kernel: tuple[int, ...] = ()) -> gm.Adapter:
    return _file(".lora_A.weight", ".lora_B.weight", names, kernel)


def _file(down: str, up: str, names: tuple[str, ...], kernel: tuple[int, ...]) -> gm.Adapter:
    """Modules of rank 2, 3, ... with random factors."""
    tensors: dict[str, torch.Tensor] = {}
    for r, name in enumerate(names, start=2):
        tensors[name + down] = torch.randn(r, 16, *kernel)
        tensors[name + up] = torch.randn(24, r, *(1 for _ in kernel))
    return gm.from_state_dict(tensors)


MADE_EARLIER = "ollama makes no model from an adapter since 0.34.1; make it with an earlier version"
LLAMA_AND_GEMMA = (
    "ollama converts adapters of PEFT for bases of the architectures llama and gemma2 only"
)
LOG = "comfyui skips modules that its model does not have: 'lora key not loaded' in its log"


@pytest.mark.parametrize(
    ("target", "source", "options", "notes"),
    [
        ("sglang", peft(Q, K), {}, ("serve it with --max-lora-rank 2 or more",)),
        ("sglang", peft(Q, rank=9), {"rank": 8}, ("serve it with --max-lora-rank 8 or more",)),
        ("ollama", peft(Q, GATE), {}, (MADE_EARLIER, LLAMA_AND_GEMMA)),
        ("mlx", peft(Q, K), {"format": "mlx"}, ()),
        ("diffusers", kohya("lora_unet_x", "lora_te1_y"), {}, ()),
        ("diffusers", kohya("lora_unet_x", kernel=(3, 3)), {}, ()),
        ("diffusers", dotted("unet.x.to_q"), {}, ()),
        ("comfyui", kohya("lycoris_x", "lora_te3_y"), {}, (LOG,)),
        ("comfyui", dotted("diffusion_model.x.q", kernel=(3, 3)), {}, (LOG,)),
    ],
)
def test_served(
    target: Target, source: gm.Adapter, options: dict[str, Any], notes: tuple[str, ...]
) -> None:
    assert gm.plan([source], target=target, **options).notes == notes


def test_notes_of_diffusers() -> None:
    source = dotted("diffusion_model.x.q", "diffusion_model.x.k")
    assert gm.plan([source], method="mean", target="diffusers").notes == (
        "diffusers reads modules of unlike ranks since diffusers#14409 (August 2026)",
        "diffusers converts names under diffusion_model for some pipelines only",
    )


@pytest.mark.parametrize(
    ("target", "source", "options", "message"),
    [
        ("vllm", kohya("lora_unet_x"), {}, "vllm reads the format peft, not kohya; choose --format peft (format='peft')"),
        ("llama.cpp", dotted("unet.x.q"), {}, "llama.cpp reads the format peft"),
        ("sglang", dotted("unet.x.q"), {}, "sglang reads the format peft, not diffusers; choose --format peft"),
        ("mlx", peft(Q), {}, "mlx reads the format mlx, not peft; choose --format mlx (format='mlx')"),
        ("diffusers", peft(Q), {}, "diffusers reads the format diffusers and kohya, not peft; choose --format diffusers"),
        ("comfyui", peft(Q), {}, "comfyui reads the format diffusers and kohya, not peft"),
        ("diffusers", kohya("lora_unet_x", "lycoris_y"), {}, "diffusers does not convert lycoris_y of kohya's format; leave out"),
        ("diffusers", kohya("lora_unet_x", "lora_te3_y"), {}, "diffusers does not convert lora_te3_y"),
        ("ollama", peft("lm_head"), {}, "ollama does not serve LoRA on other modules than q, k, v, o, gate, up, down (lm_head)"),
        ("ollama", peft(Q, shape=(24, 3), rank=4), {}, "ollama takes factors of a rank above the sides of a layer"),
        ("ollama", peft(Q), {"rank": 99}, "got 99; cut it with --rank (rank=)"),
    ],
)  # fmt: skip
def test_refused(target: Target, source: gm.Adapter, options: dict[str, Any], message: str) -> None:
    with pytest.raises(gm.GamMergeError, match=re.escape(message)) as caught:
        gm.plan([source], target=target, **options)
    assert "; " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["sglang", "ollama"])
def test_ranks_of_their_own(target: Target) -> None:
    generator = torch.Generator().manual_seed(0)
    factors = {Q: random_factors(generator, 24, 16, 2), K: random_factors(generator, 24, 16, 6)}
    with pytest.raises(gm.GamMergeError, match="leave --per-module-rank out"):
        gm.merge([adapter(factors)], target=target, energy=1.0, per_module_rank=True)


# variant -> what SGLang says: what it refuses, or a note.
SGLANG = {
    "linear": None,
    "embedding": "note: LoRA on embed_tokens for some models only",
    "lm_head": "note: LoRA on lm_head for some models only",
    "experts": "LoRA on experts (model.layers.0.mlp.experts)",
    "dora": "DoRA; --flatten-dora",
    "modules_to_save": "modules_to_save (lm_head.weight)",
    "trainable_tokens": "trainable_tokens (model.embed_tokens.token_adapter",
    "conv": "LoRA on convolutions (line)",
}


@pytest.mark.parametrize("name", SGLANG)
def test_what_sglang_takes(name: str, tmp_path: Path) -> None:
    kind, config = VARIANTS[name]
    source, said = save(tmp_path / "a", kind, 0, **config), SGLANG[name]
    weights = base(kind) if name == "dora" else None
    if said is not None and not said.startswith("note: "):
        with pytest.raises(gm.GamMergeError, match=re.escape(f"sglang does not serve {said}")):
            gm.plan([source], target="sglang", base_model=weights)
        return
    notes = gm.plan([source], target="sglang").notes
    about = [note for note in notes if "for some models only" in note]
    assert len(about) == (said is not None)
    assert all(said.removeprefix("note: ") in note for note in about if said)


def test_the_command_line_knows_all_of_them() -> None:
    kind, option = get_args(_options.For)
    assert set(get_args(get_args(kind)[0])) == set(get_args(Target))
    assert all(name in option.help for name in get_args(Target))
