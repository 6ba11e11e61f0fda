"""MLX-LM's adapters: read, merged and written, and read back by MLX-LM itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import write_adapter

import gam_merge as gm

mx = pytest.importorskip("mlx.core")
mlx_models = pytest.importorskip("mlx_models")
ARGUMENTS, deltas, save = mlx_models.ARGUMENTS, mlx_models.deltas, mlx_models.save


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two adapters of unlike ranks, scales and modules."""
    return [
        save(tmp_path / "a", 1, rank=4, scale=20.0, keys=["self_attn.q_proj", "self_attn.v_proj"]),
        save(tmp_path / "b", 2, rank=8, scale=2.5, keys=["self_attn.q_proj", "mlp.down_proj"]),
    ]


def close(x: Any, y: Any) -> bool:
    """1e-5 of the largest entry, or of 1 if that is more: fusing adds the delta to a weight in float32."""
    return bool(np.abs(x - y).max() <= 1e-5 * max(np.abs(y).max(), 1.0))


def test_identity(pair: list[Path], tmp_path: Path) -> None:
    gm.merge(pair[:1], method="mean", out=tmp_path / "out")
    expected, merged = deltas(pair[0]), deltas(tmp_path / "out")
    assert merged.keys() == expected.keys()
    assert all(close(merged[name], expected[name]) for name in merged)


def test_weighted_mean(pair: list[Path], tmp_path: Path) -> None:
    result = gm.merge(pair, method="mean", weights=[0.3, 0.7], rank=12, out=tmp_path / "out")
    first, second, merged = deltas(pair[0]), deltas(pair[1]), deltas(tmp_path / "out")
    assert merged.keys() == first.keys() | second.keys()
    for name, delta in merged.items():
        assert close(delta, 0.3 * first.get(name, 0.0) + 0.7 * second.get(name, 0.0))
    assert result.adapter.format == "mlx"
    assert result.adapter.base_model == "org/base"


@pytest.mark.parametrize("method", ["gam", "ties", "consensus"])
def test_same_as_in_memory(method: str, pair: list[Path], tmp_path: Path) -> None:
    on_disk = gm.merge(pair, method=method, out=tmp_path / "out").adapter
    in_memory = gm.merge(pair, method=method).adapter
    for name, module in on_disk.modules.items():
        assert torch.equal(module.delta(), in_memory.modules[name].delta())


def test_the_other_verbs(pair: list[Path], tmp_path: Path) -> None:
    assert gm.inspect(pair[0]).problems == ()
    assert len(gm.compare(pair).modules) == 9
    assert gm.resize(pair[1], rank=2, out=tmp_path / "small").adapter.rank == 2
    gm.merge(pair, method="mean", out=tmp_path / "out")
    assert gm.verify(tmp_path / "out", rerun=True).holds
    again = gm.merge_recipe(tmp_path / "out" / "gam_merge_recipe.yaml", out=tmp_path / "again")
    weights = "adapters.safetensors"
    assert again.path is not None
    assert (again.path / weights).read_bytes() == (tmp_path / "out" / weights).read_bytes()


def change(path: Path, **fields: Any) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


PARAMETERS = {"rank": 4, "scale": 20.0, "dropout": 0.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fine_tune_type": "dora"}, "fine_tune_type is 'dora'"),
        ({"fine_tune_type": "full"}, "fine_tune_type is 'full'"),
        ({"lora_parameters": None}, "lora_parameters must be an object, got None"),
        ({"lora_parameters": {"rank": 4}}, r"lora_parameters\.scale must be a number, got None"),
        ({"lora_parameters": {**PARAMETERS, "scale": "1"}}, r"scale must be a number, got '1'"),
        ({"lora_parameters": {**PARAMETERS, "rank": 5}}, "rank 4 by its tensors and 5 by its"),
    ],
)
def test_configs(fields: dict[str, Any], message: str, pair: list[Path], tmp_path: Path) -> None:
    change(pair[0], **fields)
    with pytest.raises(gm.GamMergeError, match=message):
        gm.merge(pair, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.x.lora_a": (32, 4)}, r"module model\.x has no lora_b; the file is incomplete"),
        ({"model.x.lora_a": (32, 4), "model.x.lora_b": (5, 32)}, r"not \(in, r\) and \(r, out\)"),
        ({"model.x.lora_a": (2, 4, 32), "model.x.lora_b": (2, 32, 4)}, "a factor per expert"),
        ({"model.x.lora_a": (32, 4), "model.x.m": (32,)}, r"model\.x is DoRA"),
        ({"model.x.lora_a": (32, 4), "model.x.bias": (32,)}, "not part of a LoRA"),
    ],
)
def test_tensors(tensors: dict[str, tuple[int, ...]], message: str, pair: list[Path]) -> None:
    arrays = {name: mx.zeros(shape) for name, shape in tensors.items()}
    mx.save_safetensors(str(pair[0] / "adapters.safetensors"), arrays)
    with pytest.raises(gm.GamMergeError, match=message):
        gm.load(pair[0])


def test_a_file_without_its_config(pair: list[Path]) -> None:
    (pair[0] / "adapter_config.json").unlink()
    with pytest.raises(gm.GamMergeError, match="where MLX-LM keeps rank and scale"):
        gm.load(pair[0] / "adapters.safetensors")


def test_ranks_by_module_are_refused(pair: list[Path], tmp_path: Path) -> None:
    with pytest.raises(gm.GamMergeError, match="MLX-LM reads one rank for all modules"):
        gm.merge(pair, method="mean", per_module_rank=True, energy=0.9, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_with_an_adapter_of_peft(pair: list[Path], tmp_path: Path) -> None:
    """Names agree, so the two merge, into the format that is named."""
    module = "model.layers.0.self_attn.q_proj"
    factors = {module: (torch.randn(32, 2), torch.randn(2, 32))}
    peft = write_adapter(tmp_path / "peft", factors, base_model_name_or_path="org/base")
    with pytest.raises(gm.GamMergeError, match=r"unlike formats: .*\(mlx\), .*\(peft\); choose"):
        gm.plan([pair[0], peft])
    out = tmp_path / "out"
    result = gm.merge([pair[0], peft], method="mean", rank=6, format="peft", out=out)
    assert result.adapter.format == "peft"
    assert result.adapter.config["base_model_name_or_path"] == "org/base"
    b, a = factors[module]
    expected = (deltas(pair[0])[module] + (b @ a).numpy()) / 2
    assert close(result.adapter.modules[module].delta().numpy(), expected)


def test_inspect_says_why_it_cannot_be_merged(pair: list[Path]) -> None:
    change(pair[0], fine_tune_type="full", lora_parameters=None)
    with pytest.raises(gm.GamMergeError, match="fine_tune_type is 'full'"):
        gm.inspect(pair[0])


def test_a_base_model_that_the_config_does_not_name(pair: list[Path], tmp_path: Path) -> None:
    change(pair[0], model=None)
    gm.merge(pair[:1], method="mean", base_model="org/given", out=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["model"] == "org/given"
    assert gm.verify(tmp_path / "out", rerun=True).holds


def test_in_a_live_model_of_peft(pair: list[Path]) -> None:
    """The same deltas as in MLX-LM, under PEFT's names."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    from gam_merge.integrations.peft import with_adapter

    config = {name: value for name, value in ARGUMENTS.items() if name != "model_type"}
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    live = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"]))
    with with_adapter(live, gm.load(pair[0]), name="mlx"):
        for name, delta in deltas(pair[0]).items():
            layer = live.get_submodule(f"base_model.model.{name}")
            assert close(layer.get_delta_weight("mlx").detach().numpy(), delta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_converted_there_and_back(dtype: torch.dtype, pair: list[Path], tmp_path: Path) -> None:
    """A scale of 2 is folded without rounding, in bfloat16, too."""
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for i in range(2):
        b, a = torch.randn(32, 3, generator=generator), torch.randn(3, 48, generator=generator)
        factors[f"model.layers.{i}.mlp.down_proj"] = (b.to(dtype), a.to(dtype))
    peft = write_adapter(tmp_path / "peft", factors, r=3, lora_alpha=6)
    gm.convert(peft, format="mlx", out=tmp_path / "mlx")
    back = gm.convert(tmp_path / "mlx", format="peft", out=tmp_path / "back").adapter
    source = gm.load(peft)
    assert back.modules.keys() == source.modules.keys()
    assert back.dtype == dtype
    for name, module in back.modules.items():
        assert torch.equal(module.delta(), source.modules[name].delta())
    if dtype == torch.float32:  # MLX-LM multiplies in the dtype of the factors
        for name, delta in deltas(tmp_path / "mlx").items():
            assert close(delta, source.modules[name].delta().float().numpy())
