"""Names and layers of one model in the grammars of several formats, held against diffusers."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines import assert_close, combined, deltas, layers, save_diffusers, save_kohya, unet
from safetensors.torch import load_file, save_file
from test_cli import run

import gam_merge as gm
from gam_merge._common.tensors import FileTensor, read
from gam_merge._read.adapter import Adapter
from gam_merge._translate.translate import DIALECTS, dialect_of

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

Tensors = dict[str, torch.Tensor]
ADAPTED = (torch.nn.Linear, torch.nn.Conv2d)
DIALECT = {dialect.name: dialect for dialect in DIALECTS}
SD = DIALECT["kohya's names of Stable Diffusion 1 and 2"]
SDXL = DIALECT["kohya's names of Stable Diffusion XL, after diffusers"]
SAI = DIALECT["kohya's names of Stable Diffusion XL, after Stability AI"]
KOHYA_FLUX = DIALECT["kohya's names of Flux"]
OLD = DIALECT["diffusers' names of 2023"]
BFL = DIALECT["Black Forest Labs' names (diffusion_model.double_blocks)"]
COMFY = DIALECT["ComfyUI's names"]


@cache
def unet_of_sd() -> Any:
    """The UNet of Stable Diffusion 1.5 by its published config, without weights."""
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel.from_config(
            {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
        )


@cache
def unet_of_sdxl() -> Any:
    """The UNet of Stable Diffusion XL 1.0 by its published config, without weights."""
    config = {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
    }
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel.from_config(config)


@cache
def flux() -> Any:
    """The transformer of FLUX.1-dev by its published config, without weights."""
    with torch.device("meta"):
        return diffusers.FluxTransformer2DModel.from_config({"guidance_embeds": True})


@cache
def clip(layer_count: int) -> Any:
    config = transformers.CLIPTextConfig(num_hidden_layers=layer_count)
    with torch.device("meta"):
        return transformers.CLIPTextModelWithProjection(config)


@cache
def t5() -> Any:
    config = transformers.T5Config(num_layers=24, feed_forward_proj="gated-gelu")
    with torch.device("meta"):
        return transformers.T5EncoderModel(config)


def common_shapes(components: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    """The shape of every weight of some components, by the common name of its module."""
    shapes: dict[str, Sequence[int]] = {}
    for component, model in components.items():
        for name, layer in model.named_modules():
            if isinstance(layer, ADAPTED):
                shapes[f"{component}.{name}"] = tuple(layer.weight.shape)
    return shapes


def pipeline_of_sd() -> dict[str, Any]:
    return {"unet": unet_of_sd(), "text_encoder": clip(12)}


def pipeline_of_sdxl() -> dict[str, Any]:
    return {"unet": unet_of_sdxl(), "text_encoder": clip(12), "text_encoder_2": clip(32)}


def pipeline_of_flux() -> dict[str, Any]:
    return {"transformer": flux(), "text_encoder": clip(12), "text_encoder_2": t5()}


def adapter_of(shapes: Mapping[str, Sequence[int]], *, seed: int = 0, rank: int = 1) -> Adapter:
    """An adapter in memory, in diffusers' names."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for name, (out, into, *kernel) in shapes.items():
        a = torch.randn(rank, into, *kernel, generator=generator)
        b = torch.randn(out, rank, *(1 for _ in kernel), generator=generator)
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    return gm.from_state_dict(tensors)


CASES = [
    (SD, pipeline_of_sd), (SDXL, pipeline_of_sdxl), (SAI, pipeline_of_sdxl),
    (KOHYA_FLUX, pipeline_of_flux), (BFL, pipeline_of_flux), (OLD, pipeline_of_sd),
    (OLD, pipeline_of_sdxl),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "pipeline"), CASES)
def test_every_module_has_a_name_both_ways(dialect: Any, pipeline: Any) -> None:
    """Of tensors that nothing reads: of rank 1, on the meta device."""
    with torch.device("meta"):
        shapes = common_shapes(pipeline())
        tensors: Tensors = {}
        for name, (out, into, *kernel) in shapes.items():
            ones = (1 for _ in kernel)
            tensors[f"{name}.lora_A.weight"] = torch.empty(1, into, *kernel)
            tensors[f"{name}.lora_B.weight"] = torch.empty(out, 1, *ones)
    common = gm.from_state_dict(tensors)
    own = dialect.from_common(common.modules, common)
    assert dialect.recognizes(own)
    back = dialect.to_common(Adapter("own", own, format=dialect.format))
    assert back.keys() == shapes.keys()
    for name, module in back.items():
        assert module.name == name
        assert module.shape == common.modules[name].shape


def tiny(shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Layers of the same kinds, all of width 2."""
    return {name: (2, 2, *shape[2:]) for name, shape in shapes.items()}


def written(adapter: Adapter, dialect: Any, path: Path) -> Path:
    """A file with the modules of an adapter in a dialect."""
    modules = dialect.from_common(adapter.modules, adapter)
    save_file(gm.state_dict(Adapter("own", modules, format=dialect.format)), path)
    return path


def as_peft(state: Mapping[str, torch.Tensor]) -> Tensors:
    """What diffusers loads from a file, by the keys under which it injects it."""
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    texts = {key: tensor for key, tensor in state.items() if key.startswith("text_encoder")}
    others = {key: tensor for key, tensor in state.items() if key not in texts}
    loaded = convert_unet_state_dict_to_peft(others)
    if not texts:
        return loaded
    return {**loaded, **convert_state_dict_to_peft(convert_state_dict_to_diffusers(texts))}


@pytest.mark.parametrize(
    ("dialect", "pipeline", "mixin"),
    [
        (SD, pipeline_of_sd, diffusers.StableDiffusionPipeline),
        (SDXL, pipeline_of_sdxl, diffusers.StableDiffusionXLPipeline),
        (SAI, pipeline_of_sdxl, diffusers.StableDiffusionXLPipeline),
    ],
)
def test_diffusers_reads_every_stem_as_we_do(
    dialect: Any, pipeline: Any, mixin: Any, tmp_path: Path
) -> None:
    shapes = tiny(common_shapes(pipeline()))
    if dialect is SDXL:  # diffusers takes this stem apart wrongly: both become add.embedding.linear
        shapes = {name: shape for name, shape in shapes.items() if "add_embedding" not in name}
    adapter = adapter_of(shapes)
    file = written(adapter, dialect, tmp_path / "own.safetensors")
    state, _ = mixin.lora_state_dict(
        str(tmp_path), weight_name=file.name, unet_config=pipeline()["unet"].config
    )
    loaded, expected = as_peft(state), gm.state_dict(adapter)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_names_of_2023_are_those_that_diffusers_makes_of_kohyas(tmp_path: Path) -> None:
    adapter = adapter_of(tiny(common_shapes(pipeline_of_sd())))
    file = written(adapter, SD, tmp_path / "own.safetensors")
    state, _ = diffusers.StableDiffusionPipeline.lora_state_dict(
        str(tmp_path), weight_name=file.name, unet_config=unet_of_sd().config
    )
    old = load_file(written(adapter, OLD, tmp_path / "old.safetensors"))
    assert old.keys() == state.keys()
    assert all(torch.equal(old[key], state[key]) for key in old)


# Flux: diffusers' converter knows its real widths alone.
N = 3072
PARTS = ("to_q", "to_k", "to_v")


def read_by_flux(path: Path) -> Tensors:
    """What diffusers loads from a file, by PEFT's keys.

    It leaves out the component of the layers outside of the blocks, so that its own loader does
    not find those; the names behind it are right.
    """
    state = diffusers.FluxPipeline.lora_state_dict(str(path.parent), weight_name=path.name)
    loaded: Tensors = {}
    for key, tensor in state.items():
        known = key.startswith(("transformer.", "text_encoder."))
        loaded[key if known else f"transformer.{key}"] = tensor
    return as_peft(loaded)


def flux_adapter(*, rank: int = 1, seed: int = 0) -> Adapter:
    """All layers of Flux that are not in T5, which diffusers leaves out."""
    shapes = common_shapes({"transformer": flux(), "text_encoder": clip(2)})
    shapes.pop("text_encoder.text_projection")  # left out by diffusers, too
    return adapter_of(shapes, rank=rank, seed=seed)


def assert_same_deltas(one: Tensors, other: Tensors) -> None:
    """On a random input, to 1e-6: float64 on both sides; the order of additions is free."""
    assert one.keys() == other.keys()
    for key, a in one.items():
        if ".lora_A." not in key:
            continue
        up = key.replace("lora_A", "lora_B")
        x = torch.randn(a.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        y, z = (t[up].double() @ (t[key].double() @ x) for t in (one, other))
        assert (y - z).norm() <= 1e-6 * z.norm(), key


@pytest.mark.parametrize("dialect", [KOHYA_FLUX, BFL])
def test_diffusers_reads_every_layer_of_flux_as_we_do(dialect: Any, tmp_path: Path) -> None:
    """Fused from diffusers' layers at rank 3 and 4, and split again by diffusers."""
    adapter = flux_adapter()
    modules = dialect.from_common(adapter.modules, adapter)
    own = gm.state_dict(Adapter("own", modules, format=dialect.format))
    renamed = {re.sub("lora_A", "lora_down", key): tensor for key, tensor in own.items()}
    renamed = {re.sub("lora_B", "lora_up", key): tensor for key, tensor in renamed.items()}
    save_file(renamed, tmp_path / "own.safetensors")
    assert_same_deltas(read_by_flux(tmp_path / "own.safetensors"), gm.state_dict(adapter))


def test_a_dense_fused_layer_is_split_as_diffusers_splits_it(tmp_path: Path) -> None:
    """Rank 2, which is not a multiple of the layers, so that diffusers copies A as we do."""
    generator = torch.Generator().manual_seed(0)
    tensors: Tensors = {}
    for stem, m in (("double_blocks_0_txt_attn_qkv", 3 * N), ("single_blocks_7_linear1", 7 * N)):
        tensors[f"lora_unet_{stem}.lora_down.weight"] = torch.randn(2, N, generator=generator)
        tensors[f"lora_unet_{stem}.lora_up.weight"] = torch.randn(m, 2, generator=generator)
        tensors[f"lora_unet_{stem}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "own.safetensors")
    gm.convert(tmp_path / "own.safetensors", format="diffusers", out=tmp_path / "out.safetensors")
    converted = load_file(tmp_path / "out.safetensors")
    assert len(converted) == 14
    assert_same_deltas(converted, read_by_flux(tmp_path / "own.safetensors"))


def toy_flux() -> Any:
    return diffusers.FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        in_channels=4,
        joint_attention_dim=6,
        pooled_projection_dim=6,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 0),
    )


def save_peft(path: Path, model: Any, targets: Sequence[str], **config: Any) -> Path:
    """A directory as PEFT saves it, of all layers whose names end so."""
    torch.manual_seed(0)
    lora = peft.LoraConfig(target_modules=list(targets), init_lora_weights=False, **config)
    wrapped = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
    wrapped.save_pretrained(path)
    return path


def targets_of(model: Any) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, ADAPTED)]


def assert_same(one: Adapter, other: Adapter, tolerance: float = 1e-6) -> None:
    assert one.modules.keys() == other.modules.keys()
    for name, module in one.modules.items():
        delta, expected = module.delta(), other.modules[name].delta()
        assert (delta - expected).norm() <= tolerance * expected.norm(), name


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@pytest.mark.parametrize("kind", ["unet", "flux"])
def test_round_trip_of_peft(kind: str, form: str, tmp_path: Path) -> None:
    """1e-6: B is rounded to float32 with the scale folded in, alpha / r = 2.7 / 3."""
    if kind == "unet":
        source = save_peft(tmp_path / "a", unet(), [n for n, _ in layers()], r=3, lora_alpha=2.7)
    else:
        model = toy_flux()
        source = save_peft(tmp_path / "a", model, targets_of(model), r=3, lora_alpha=2.7)
    there = gm.convert(source, format=form, out=tmp_path / "b.safetensors")
    assert there.adapter.format == form
    back = gm.convert(tmp_path / "b.safetensors", format="peft", out=tmp_path / "c")
    assert back.adapter.format == "peft"
    assert_same(gm.load(tmp_path / "c"), gm.load(source))


def test_round_trip_keeps_every_bit_of_bfloat16(tmp_path: Path) -> None:
    """Rearranged factors are the same numbers; B A sums them up in another order."""
    model = toy_flux().bfloat16()
    source = save_peft(tmp_path / "a", model, targets_of(model), r=2, lora_alpha=4)
    gm.convert(source, format="kohya", out=tmp_path / "b.safetensors")
    gm.convert(tmp_path / "b.safetensors", format="peft", out=tmp_path / "c")
    back = gm.load(tmp_path / "c")
    assert back.dtype == gm.load(source).dtype == torch.bfloat16
    assert_same(back, gm.load(source), 1e-14)


def test_split_layers_are_fused_again_at_their_own_rank(tmp_path: Path) -> None:
    own = {
        "lora_unet_single_blocks_0_linear1.lora_down.weight": torch.randn(2, 8),
        "lora_unet_single_blocks_0_linear1.lora_up.weight": torch.randn(56, 2),
    }
    save_file(own, tmp_path / "a.safetensors")
    diffusion = "diffusion_model.single_blocks.0"
    dotted = {f"{diffusion}.linear1.lora_A.weight": torch.randn(2, 8), f"{diffusion}.linear1.lora_B.weight": torch.randn(56, 2)}  # fmt: skip
    save_file(dotted, tmp_path / "b.safetensors")
    planned = gm.plan([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], format="kohya")
    assert planned.modules == ["lora_unet_single_blocks_0_linear1"]
    assert planned.buckets[0].ranks == (2, 2)


def test_layers_of_unlike_ranks_scales_and_presence_are_fused(tmp_path: Path) -> None:
    """to_k is missing: its rows are zeros. Scales of 2, 1 / 3 go into B."""
    generator = torch.Generator().manual_seed(0)
    tensors: Tensors = {}
    block = "transformer.single_transformer_blocks.3"
    for layer, m, rank, alpha in (
        ("attn.to_q", 8, 2, 4.0), ("attn.to_v", 8, 3, 1.0), ("proj_mlp", 32, 1, 1.0),
    ):  # fmt: skip
        tensors[f"{block}.{layer}.lora_A.weight"] = torch.randn(rank, 8, generator=generator)
        tensors[f"{block}.{layer}.lora_B.weight"] = torch.randn(m, rank, generator=generator)
        tensors[f"{block}.{layer}.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "a.safetensors")
    gm.convert(tmp_path / "a.safetensors", format="kohya", out=tmp_path / "b.safetensors")
    fused = gm.load(tmp_path / "b.safetensors").modules["lora_unet_single_blocks_3_linear1"]
    source = gm.load(tmp_path / "a.safetensors").modules
    assert (fused.rank, fused.shape) == (6, (56, 8))
    expected = torch.zeros(56, 8, dtype=torch.float64)
    for layer, start in (("attn.to_q", 0), ("attn.to_v", 16), ("proj_mlp", 24)):
        delta = source[f"{block}.{layer}"].delta()
        expected[start : start + len(delta)] = delta
    assert (fused.delta() - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize(("alphas", "dtype"), [
    ((0.0, 0.0), torch.float32),  # of an adapter of PEFT that is switched off
    ((0.0, 3.0), torch.float32),
    ((60000.0, 1.0), torch.float16),  # times a factor it is beyond the range
    ((0.7, 0.1), torch.float16),
])  # fmt: skip
def test_scales_of_fused_layers_keep_their_value(
    alphas: tuple[float, float], dtype: torch.dtype, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    block, parts = "transformer_blocks.0.attn", ("to_q", "to_k")
    tensors: Tensors = {}
    for part in parts:
        a, b = torch.randn(2, 8, generator=generator), torch.randn(8, 2, generator=generator)
        tensors[f"base_model.model.{block}.{part}.lora_A.weight"] = (8 * a).to(dtype)
        tensors[f"base_model.model.{block}.{part}.lora_B.weight"] = (8 * b).to(dtype)
    name = "base_model.model.single_transformer_blocks.0.proj_out.lora"  # of Flux
    tensors |= {f"{name}_A.weight": torch.ones(2, 40, dtype=dtype)}
    tensors |= {f"{name}_B.weight": torch.ones(8, 2, dtype=dtype)}
    (tmp_path / "a").mkdir()
    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    pattern = dict(zip(parts, alphas, strict=True))
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "alpha_pattern": pattern}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    out = tmp_path / "b.safetensors"
    gm.convert(tmp_path / "a", format="kohya", dtype="float32", out=out)
    fused = gm.load(out).modules["lora_unet_double_blocks_0_img_attn_qkv"].delta()
    source = gm.load(tmp_path / "a").modules
    expected = torch.cat([source[f"{block}.{part}"].delta() for part in parts])
    assert (fused[:16] - expected).norm() <= 1e-6 * expected.norm()
    assert not fused[16:].any()


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """A file of kohya's and a directory of diffusers, of unlike ranks and alphas."""
    return [
        save_kohya(tmp_path / "a.safetensors", 1, rank=4, alpha=2.7),
        save_diffusers(tmp_path / "b", 2, rank=6, alpha=3),
    ]


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_merge_of_both_is_the_sum_of_what_diffusers_reads(
    form: str, mixed: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    gm.merge(mixed, method="mean", weights=[0.3, 0.7], rank=10, format=form, out=out)
    assert gm.load(out).format == form
    assert_close(deltas(out), combined(mixed, [0.3, 0.7]))


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_diffusers_reads_what_convert_wrote_alike(
    form: str, mixed: list[Path], tmp_path: Path
) -> None:
    for source in mixed:
        out = tmp_path / "out.safetensors"
        gm.convert(source, format=form, out=out, force=True)
        assert_close(deltas(out), deltas(source))


def test_a_merge_of_several_formats_runs_again(mixed: list[Path], tmp_path: Path) -> None:
    gm.merge(mixed, format="kohya", out=tmp_path / "out.safetensors")
    assert gm.verify(tmp_path / "out.safetensors", rerun=True).holds


def test_a_plan_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_flux()
    source = save_peft(tmp_path / "a", model, targets_of(model), r=2)

    def refuse(*_: Any) -> None:
        raise AssertionError("read")

    monkeypatch.setattr("gam_merge._common.tensors.FileTensor.read_into", refuse)
    assert gm.plan([source], method="copy", format="kohya").rank == 8


def two(tmp_path: Path, names: Sequence[str], spellings: Sequence[str]) -> list[Path]:
    """Two files of one module each, 8 to 8, by their names and the ends of their keys."""
    paths: list[Path] = []
    for i, (name, down) in enumerate(zip(names, spellings, strict=True)):
        up = down.replace("down", "up").replace("lora_A", "lora_B")
        path = tmp_path / f"{i}.safetensors"
        save_file({name + down: torch.randn(2, 8), name + up: torch.randn(8, 2)}, path)
        paths.append(path)
    return paths


ATTENTION = "attentions.0.transformer_blocks.0.attn1"
PEFT_STYLE, KOHYA_STYLE = ".lora_A.weight", ".lora_down.weight"


@pytest.mark.parametrize(
    ("names", "spellings", "merged"),
    [
        ((f"unet.mid_block.{ATTENTION}.processor.to_out", f"unet.mid_block.{ATTENTION}.to_out.0"),
         ("_lora.down.weight", PEFT_STYLE), f"unet.mid_block.{ATTENTION}.to_out.0"),
        (("text_encoder.text_model.encoder.layers.0.self_attn.to_q",
          "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"),
         ("_lora.down.weight", ".lora_linear_layer.down.weight"),
         "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"),
        (("text_encoder.encoder.layers.0.mlp.fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
         (PEFT_STYLE, PEFT_STYLE), "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        (("lora_unet_middle_block_1_transformer_blocks_1_attn2_to_q",
          "lora_unet_mid_block_attentions_0_transformer_blocks_1_attn2_to_q"),
         (KOHYA_STYLE, KOHYA_STYLE), "lora_unet_middle_block_1_transformer_blocks_1_attn2_to_q"),
        (("diffusion_model.double_blocks.3.img_attn.proj", "transformer.transformer_blocks.3.attn.to_out.0"),
         (PEFT_STYLE, PEFT_STYLE), "transformer.transformer_blocks.3.attn.to_out.0"),
        (("diffusion_model.double_blocks.3.txt_attn.proj", "transformer.double_blocks.3.txt_attn.proj"),
         (PEFT_STYLE, PEFT_STYLE), "diffusion_model.double_blocks.3.txt_attn.proj"),
        (("double_blocks.3.txt_attn.proj", "transformer.transformer_blocks.3.attn.to_add_out"),
         (KOHYA_STYLE, PEFT_STYLE), "transformer.transformer_blocks.3.attn.to_add_out"),
        (("diffusion_model.transformer_blocks.3.attn.to_q", "transformer.transformer_blocks.3.attn.to_q"),
         (PEFT_STYLE, PEFT_STYLE), "transformer.transformer_blocks.3.attn.to_q"),
        (("diffusion_model.layers.3.attention.to_out.0", "transformer.layers.3.attention.to_out.0"),
         (PEFT_STYLE, PEFT_STYLE), "transformer.layers.3.attention.to_out.0"),
        (("up_blocks.0.resnets.0.conv1", "unet.up_blocks.0.resnets.0.conv1"),
         (".lora.down.weight", ".lora.down.weight"), "unet.up_blocks.0.resnets.0.conv1"),
    ],
)  # fmt: skip
def test_dialects_of_one_format_merge_together(
    names: Sequence[str], spellings: Sequence[str], merged: str, tmp_path: Path
) -> None:
    paths = two(tmp_path, names, spellings)
    for order in (paths, paths[::-1]):
        result = gm.merge(order, method="mean", rank=4).adapter
        assert list(result.modules) == [merged]
        deltas = [next(iter(gm.load(path).modules.values())).delta() for path in paths]
        expected = sum(deltas) / 2
        assert torch.allclose(result.modules[merged].delta(), expected, atol=1e-5)


def pair(name: str, out: int = 8, into: int = 8, *, kohya: bool = False) -> Tensors:
    down, up = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    return {f"{name}.{down}.weight": torch.ones(2, into), f"{name}.{up}.weight": torch.ones(out, 2)}


LANGUAGE = "base_model.model.model.layers.0.mlp.up_proj"
SD_STEM = "lora_unet_mid_block_attentions_0_proj_in"
UNET_NAME = "unet.mid_block.attentions.0.proj_in"
FLUX_STEM = "lora_unet_double_blocks_0_img_attn_qkv"


@pytest.mark.parametrize(
    ("tensors", "form", "message"),
    [
        (pair(FLUX_STEM, 25, kohya=True), "diffusers",
         r"module lora_unet_double_blocks_0_img_attn_qkv must be 24 wide, 3 times the 8 .* \(25, 8\)"),
        (pair("lora_unet_single_blocks_0_linear1", 24, kohya=True), "diffusers",
         r"linear1 must be 56 wide, 7 times the 8 that go in, .* got \(out, in\) of \(24, 8\)"),
        (pair("transformer.single_transformer_blocks.0.proj_mlp", 24), "kohya",
         r"proj_mlp must be 32 wide, 4 times the 8 that go in, .* got \(out, in\) of \(24, 8\)"),
        ({**pair("transformer.single_transformer_blocks.0.attn.to_q"),
          **pair("transformer.single_transformer_blocks.0.attn.to_k", 4, 4)}, "kohya",
         r"linear1 must have one width in, got \(out, in\) of .*to_q \(8, 8\), .*to_k \(4, 4\)"),
        (pair("diffusion_model.final_layer.adaLN_modulation.1", 7)
         | pair("diffusion_model.double_blocks.0.img_attn.proj"), "peft",
         r"adaLN_modulation\.1 must have an even width out, .* got 7"),
        (pair(SD_STEM, kohya=True) | pair("lora_unet_mid_block_mystery", kohya=True), "diffusers",
         r"module lora_unet_mid_block_mystery \(kohya\) has no name in diffusers' format; merge it"),
        (pair("lora_unet_blocks_0_self_attn_q", kohya=True), "diffusers",
         r"lora_unet_blocks_0_self_attn_q \(kohya\) cannot be translated .* format diffusers: no table"),
        (pair("diffusion_model.blocks.0.self_attn.q"), "kohya",
         r"blocks\.0\.self_attn\.q \(diffusers\) cannot be translated .* format kohya: no table"),
        (pair("transformer.transformer_blocks.0.attn.to_q"), "kohya",
         r"attn\.to_q \(diffusers\) cannot be translated .* format kohya: no table .*; merge"),
        (pair("transformer.single_transformer_blocks.0.ff.linear_1"), "kohya",
         r"linear_1 \(diffusers\) has no name in kohya's names of Flux; merge it with adapters"),
        (pair(UNET_NAME) | pair("text_encoder.text_model.encoder.layers.0.mlp.fc1"), "peft",
         "has modules of text_encoder and unet, and an adapter of PEFT is for one model"),
        (pair("unet.mid_block.attentions.0.attn1.processor.to_q")
         | pair("unet.mid_block.attentions.0.attn1.to_q"), "kohya",
         r"processor\.to_q and .*attn1\.to_q \(diffusers\) are both unet\..*attn1\.to_q in diffusers'"),
        (pair("transformer.transformer_blocks.0.attn.to_out.0")
         | pair("transformer.double_blocks.0.img_attn.proj"), "kohya",
         r"has no name in diffusers' format"),
    ],
)  # fmt: skip
def test_what_cannot_be_mapped_is_refused(
    tensors: Tensors, form: str, message: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    out = tmp_path / ("out" if form == "peft" else "out.safetensors")
    with pytest.raises(gm.GamMergeError, match=message) as caught:
        gm.convert(tmp_path / "a.safetensors", format=form, out=out)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_other_grammars_of_one_format_are_not_merged_side_by_side(tmp_path: Path) -> None:
    """Wan by its own names and by those of diffusers, which no table here brings together."""
    save_file(pair("diffusion_model.blocks.0.self_attn.q"), tmp_path / "a.safetensors")
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([torch.nn.Linear(8, 8)])
    save_peft(tmp_path / "b", model, ["blocks.0"], r=2)
    paths = [tmp_path / "a.safetensors", tmp_path / "b"]
    with pytest.raises(
        gm.GamMergeError, match=r"self_attn\.q \(diffusers\) cannot be translated for"
    ):
        gm.merge(paths, format="diffusers")


def test_adapters_of_unlike_models_are_named_together(tmp_path: Path) -> None:
    """Not as one that cannot be written in the format that it is in."""
    save_file(pair(SD_STEM, kohya=True), tmp_path / "a.safetensors")
    save_file(pair(FLUX_STEM, 24, kohya=True), tmp_path / "b.safetensors")
    kinds = [r"a\.safetensors \(kohya's names of Stable", r"b\.safetensors \(kohya's names of Flux"]
    with pytest.raises(gm.GamMergeError, match=".* and .*".join(kinds)):
        gm.merge([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    language_model = "examples/adapters/addition"
    with pytest.raises(
        gm.GamMergeError, match=r"addition \(PEFT's .* one model, or choose another"
    ):
        gm.merge([tmp_path / "a.safetensors", language_model], format="kohya")


def test_language_models_have_no_stems(tmp_path: Path) -> None:
    with pytest.raises(gm.GamMergeError, match=r"\(peft\) cannot be translated .* format kohya"):
        gm.convert("examples/adapters/addition", format="kohya", out=tmp_path / "a.safetensors")


def test_dora_is_not_fused(tmp_path: Path) -> None:
    source = save_peft(tmp_path / "a", toy_flux(), ["attn.to_q", "attn.to_k"], r=2, use_dora=True)
    with pytest.raises(gm.GamMergeError, match=r"to_q uses DoRA, .* --flatten-dora"):
        gm.convert(source, format="kohya", out=tmp_path / "out.safetensors")


def test_pipelines_are_told_apart_by_their_modules(tmp_path: Path) -> None:
    """The one text encoder of SD 1 is lora_te_, the first of SDXL and Flux lora_te1_."""
    clip_layer = pair("text_encoder.text_model.encoder.layers.0.mlp.fc1")
    cases = {
        "lora_te_": pair(UNET_NAME),
        "lora_te1_": pair("unet.mid_block.attentions.0.transformer_blocks.1.ff.net.2"),
        "lora_te1": pair("transformer.single_transformer_blocks.0.proj_out", 8, 40),
    }
    for prefix, tensors in cases.items():
        save_file(tensors | clip_layer, tmp_path / "a.safetensors")
        out = tmp_path / f"{prefix}.safetensors"
        converted = gm.convert(tmp_path / "a.safetensors", format="kohya", out=out).adapter
        stems = [name for name in converted.modules if "_text_model_" in name]
        assert stems[0].startswith(prefix)
        back = gm.convert(out, format="diffusers").adapter
        assert back.modules.keys() == gm.load(tmp_path / "a.safetensors").modules.keys()


def test_a_translated_module_is_spelled_as_the_file_it_joins(tmp_path: Path) -> None:
    """diffusers takes a whole file for what its first key is."""
    names = ["transformer.double_blocks.0.img_attn.proj", "lora_unet_double_blocks_0_txt_attn_proj"]
    paths = two(tmp_path, names, [KOHYA_STYLE, KOHYA_STYLE])
    gm.merge(paths, missing="zero", format="diffusers", out=tmp_path / "out.safetensors")
    assert all(".lora_A" not in key for key in load_file(tmp_path / "out.safetensors"))


def test_convert_on_the_command_line(tmp_path: Path) -> None:
    source = save_kohya(tmp_path / "a.safetensors", 1, rank=4, alpha=2.7)
    out = tmp_path / "b.safetensors"
    done = run(["convert", source, "--format", "diffusers", "-o", out], Path.cwd())
    assert done.returncode == 0, done.stderr
    assert gm.load(out).format == "diffusers"
    assert_close(deltas(out), deltas(source))


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_merge_of_fused_and_split_layers(form: str, tmp_path: Path) -> None:
    """kohya's fused layer and three of the four of diffusers, read by diffusers before and after."""
    generator = torch.Generator().manual_seed(0)
    block = "transformer.single_transformer_blocks.5"
    tensors: Tensors = {}
    for name, m in (("attn.to_q", N), ("attn.to_v", N), ("proj_mlp", 4 * N)):
        tensors[f"{block}.{name}.lora_A.weight"] = torch.randn(2, N, generator=generator)
        tensors[f"{block}.{name}.lora_B.weight"] = torch.randn(m, 2, generator=generator)
    stem = "lora_unet_single_blocks_5_linear1"
    fused = {
        f"{stem}.lora_down.weight": torch.randn(3, N, generator=generator),
        f"{stem}.lora_up.weight": torch.randn(7 * N, 3, generator=generator),
        f"{stem}.alpha": torch.tensor(1.5),
    }
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file(fused, paths[0])
    save_file(tensors, paths[1])
    out = tmp_path / "out.safetensors"
    gm.merge(paths, method="mean", weights=[0.25, 0.75], rank=9, format=form, out=out)
    merged, *sources = (read_by_flux(path) for path in (out, *paths))
    x = torch.randn(N, dtype=torch.float64, generator=generator)
    for layer in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"):
        expected = 0.25 * output(sources[0], f"{block}.{layer}", x)
        if layer != "attn.to_k":
            expected = expected + 0.75 * output(sources[1], f"{block}.{layer}", x)
        y = output(merged, f"{block}.{layer}", x)
        assert (y - expected).norm() <= 1e-5 * expected.norm(), layer


def test_each_byte_of_a_fused_layer_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its B by the layers that it is split into; its A, which they share, by each of them."""
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    up = torch.arange(3.0 * N * 2).reshape(3 * N, 2)
    save_file(
        {
            f"{stem}.lora_down.weight": torch.ones(2, N),
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(2.0),
        },
        tmp_path / "a.safetensors",
    )
    modules = KOHYA_FLUX.to_common(gm.load(tmp_path / "a.safetensors"))
    places: list[tuple[int, int]] = []
    read_into = FileTensor.read_into

    def counted(tensor: FileTensor, out: torch.Tensor, start: int = 0) -> None:
        places.append((start, out.numel()))
        read_into(tensor, out, start)

    monkeypatch.setattr(FileTensor, "read_into", counted)
    rows = [read(module.b) for module in modules.values()]
    assert places == [(0, N * 2), (N * 2, N * 2), (2 * N * 2, N * 2)]
    assert torch.equal(torch.cat(rows), up)


def output(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    a, b = (tensors[f"{name}.lora_{letter}.weight"].double() for letter in "AB")
    return b @ (a @ x)


@pytest.mark.parametrize(
    ("pipeline", "model", "config"),
    [
        ("QwenImagePipeline", "QwenImageTransformer2DModel", {"num_layers": 1}),
        ("LTXPipeline", "LTXVideoTransformer3DModel", {"num_layers": 1}),
        ("ZImagePipeline", "ZImageTransformer2DModel", {"n_layers": 1, "n_refiner_layers": 1}),
        ("HiDreamImagePipeline", "HiDreamImageTransformer2DModel",
         {"num_layers": 1, "num_single_layers": 1, "patch_size": 2, "caption_channels": [64, 64],
          "llama_layers": [0]}),
    ],
)  # fmt: skip
def test_diffusers_reads_the_blocks_behind_comfyuis_prefix_as_we_do(
    pipeline: str, model: str, config: dict[str, Any], tmp_path: Path
) -> None:
    with torch.device("meta"):
        transformer = getattr(diffusers, model)(**config)
    shapes = tiny(common_shapes({"transformer": transformer}))
    in_blocks = {name: shape for name, shape in shapes.items() if COMFY.own_name(name)}
    assert len(in_blocks) >= 9
    adapter = adapter_of(in_blocks)
    file = written(adapter, COMFY, tmp_path / "own.safetensors")
    state = getattr(diffusers, pipeline).lora_state_dict(str(tmp_path), weight_name=file.name)
    expected = gm.state_dict(adapter)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    back = gm.convert(file, format="diffusers")
    assert dialect_of(gm.load(file)) is COMFY
    assert back.adapter.modules.keys() == gm.load(file).modules.keys()  # alone, it stays as it is
