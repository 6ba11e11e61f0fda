"""Toy parts of diffusers' pipelines, LoRA files for them, and what diffusers makes of such files."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
import transformers
from safetensors.torch import save_file

Deltas = dict[str, torch.Tensor]


def unet() -> Any:
    """The smallest UNet with attention, 1x1 and 3x3 convolutions."""
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=2,
    )


def layers() -> Iterator[tuple[str, Any]]:
    """The layers of the UNet that trainers adapt: attention, its 1x1 convolutions, a 3x3 one."""
    ends = ("to_q", "to_v", "to_out.0", "proj_in", "proj_out", "resnets.0.conv1")
    for name, layer in unet().named_modules():
        if name.endswith(ends):
            yield name, layer


def factors(layer: Any, r: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random A and B for a layer, as trainers store them."""
    out, into, *kernel = layer.weight.shape
    a = torch.randn(r, into, *kernel, generator=generator)
    return a, torch.randn(out, r, *(1 for _ in kernel), generator=generator)


def save_kohya(
    path: Path,
    seed: int,
    *,
    rank: int,
    alpha: float | None,
    mixed: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A file as sd-scripts writes it. mixed: convolutions have half the rank and another alpha."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in layers():
        small = mixed and layer.weight.ndim == 4
        a, b = factors(layer, rank // 2 if small else rank, generator)
        stem = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b}
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha / 3 if small else alpha)
    save_file(tensors, path, dict(metadata or {}))
    return path


def save_diffusers(
    path: Path, seed: int, *, rank: int, alpha: float, pattern: dict[str, int] | None = None
) -> Path:
    """A directory as the training scripts of diffusers save it."""
    model = trained_unet(seed, rank=rank, alpha=alpha, pattern=pattern)
    diffusers.StableDiffusionPipeline.save_lora_weights(
        path,
        unet_lora_layers=peft.get_peft_model_state_dict(model),
        **diffusers.training_utils._collate_lora_metadata({"unet": model}),
    )
    return path


def trained_unet(
    seed: int, *, rank: int, alpha: float, pattern: dict[str, int] | None = None
) -> Any:
    """A UNet with an adapter of random factors."""
    model = unet()
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        rank_pattern=pattern or {},
        target_modules=[name for name, _ in layers()],
        init_lora_weights=False,
    )
    model.add_adapter(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def deltas_alone(path: Path) -> Deltas:
    """What a UNet makes of a directory that it saved itself: the change of each weight."""
    model = unet()
    model.load_lora_adapter(str(path), prefix=None, adapter_name="x", use_safetensors=True)
    return _changes(model)


def deltas(path: Path) -> Deltas:
    """What diffusers makes of a file or a directory: the change of each weight."""
    model = unet()
    pipeline = diffusers.StableDiffusionPipeline
    folder, name = (path, None) if path.is_dir() else (path.parent, path.name)
    state, alphas, metadata = pipeline.lora_state_dict(
        str(folder), weight_name=name, unet_config=model.config, return_lora_metadata=True
    )
    pipeline.load_lora_into_unet(state, alphas, model, adapter_name="x", metadata=metadata)
    return _changes(model)


def _changes(model: Any) -> Deltas:
    """The change of each weight by the adapter "x"."""
    changes: Deltas = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "get_delta_weight") and "x" in layer.lora_A:
            changes[name] = layer.get_delta_weight("x").detach().double()
    return changes


def assert_close(actual: Deltas, expected: Mapping[str, torch.Tensor]) -> None:
    """1e-5 of the norm: diffusers multiplies in float32."""
    assert actual.keys() == expected.keys()
    for name, delta in actual.items():
        assert (delta - expected[name]).norm() <= 1e-5 * expected[name].norm(), name


def combined(paths: list[Path], weights: list[float]) -> Deltas:
    """The weighted sum of what diffusers makes of some files."""
    total: Deltas = {}
    for path, weight in zip(paths, weights, strict=True):
        for name, delta in deltas(path).items():
            total[name] = total.get(name, 0.0) + weight * delta
    return total


def text_encoder() -> Any:
    """A CLIP text encoder of two layers."""
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=50,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=10,
        bos_token_id=0,
        eos_token_id=1,
    )
    return transformers.CLIPTextModel(config)


def transformer() -> Any:
    """The smallest transformer of Flux."""
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )


def stable_diffusion() -> Any:
    """A pipeline of a UNet and a text encoder."""
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    return diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=text_encoder(),
        tokenizer=None,
        unet=unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def flux() -> Any:
    """A pipeline of Flux' transformer alone."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.FluxPipeline(
        scheduler=scheduler,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer(),
    )


def save_dotted(
    path: Path, seed: int, layers: Iterable[tuple[str, Any]], *, rank: int, alpha: float | None
) -> Path:
    """A file with dotted names, as ComfyUI and most trainers of transformers write it."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in layers:
        a, b = factors(layer, rank, generator)
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def flux_deltas(path: Path) -> Deltas:
    """What diffusers makes of a file for Flux."""
    pipeline, model = diffusers.FluxPipeline, transformer()
    state, alphas = pipeline.lora_state_dict(
        str(path.parent), weight_name=path.name, return_alphas=True
    )
    pipeline.load_lora_into_transformer(state, alphas, model, adapter_name="x")
    return _changes(model)


def wan_deltas(path: Path) -> Deltas:
    """What diffusers makes of a file for Wan."""
    pipeline, model = diffusers.WanPipeline, wan()
    state = pipeline.lora_state_dict(str(path.parent), weight_name=path.name)
    pipeline.load_lora_into_transformer(state, model, adapter_name="x")
    return _changes(model)


def wan() -> Any:
    """The smallest transformer of Wan."""
    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=8,
        ffn_dim=16,
        num_layers=2,
    )


# A layer of a block of Wan: in ComfyUI's files, and in diffusers.
_WAN = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}


def wan_as_comfyui() -> list[tuple[str, Any]]:
    """The layers of Wan by their names in ComfyUI's files."""
    model = wan()
    layers: list[tuple[str, Any]] = []
    for i in range(len(model.blocks)):
        for name, own in _WAN.items():
            layer = model.get_submodule(f"blocks.{i}.{own}")
            layers.append((f"diffusion_model.blocks.{i}.{name}", layer))
    return layers
