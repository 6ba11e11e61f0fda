"""One test for each known fault of PEFT's add_weighted_adapter: none of them is ours."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_factors, relative, write_adapter
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from variants import dense_mean, forward, load, model, quiet, save

import gam_merge as gm

WEIGHTS = [0.75, 0.25]
Q = {"target_modules": ["q_proj"], "init_lora_weights": False}


def merged_as_dense_mean(
    kind: str, first: dict[str, Any], second: dict[str, Any], folder: Path
) -> gm.MergeResult:
    """Merge two adapters of these configs and hold the forward pass against the mean of what PEFT fuses."""
    paths = [save(folder / "a", kind, 0, **first), save(folder / "b", kind, 1, **second)]
    result = gm.merge(paths, method="mean", weights=WEIGHTS, rank=24, out=folder / "out")
    base, expected = forward(model(kind)), forward(dense_mean(kind, paths, WEIGHTS))
    assert relative(base, expected) > 1e-3
    assert relative(forward(load(kind, folder / "out")) - base, expected - base) < 1e-5
    return result


def test_scale_is_applied_once(tmp_path: Path) -> None:
    """peft#3111: the svd family multiplied by alpha / r twice."""
    merged_as_dense_mean(
        "llama", {**Q, "r": 4, "lora_alpha": 8}, {**Q, "r": 4, "lora_alpha": 12}, tmp_path
    )


@pytest.mark.parametrize("first", [True, False])
def test_rslora_is_not_inherited(first: bool, tmp_path: Path) -> None:
    """peft#3761: the merge of an rsLoRA adapter was sqrt(rank) too large."""
    configs = [{**Q, "use_rslora": True}, Q] if first else [Q, {**Q, "use_rslora": True}]
    result = merged_as_dense_mean("llama", *configs, tmp_path)
    assert result.adapter.config["use_rslora"] is False


def test_lora_bias_is_kept(tmp_path: Path) -> None:
    """peft#3761: lora_bias was dropped."""
    merged_as_dense_mean("qwen2", {**Q, "lora_bias": True}, {**Q, "lora_bias": True}, tmp_path)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_base_weights_are_never_rewritten(init: str, tmp_path: Path) -> None:
    """PEFT ran the initialiser of the first adapter, which changes the base. Such an adapter is refused, and what
    PEFT makes of it by its own conversion is merged."""
    start = copy.deepcopy(model("llama")).float()
    with quiet():
        adapted = get_peft_model(
            start, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=init)
        )
        adapted.peft_config["default"].init_lora_weights = True
        adapted.save_pretrained(tmp_path / "start")
        adapted.peft_config["default"].init_lora_weights = init
        with torch.no_grad():
            for parameter in (p for p in adapted.parameters() if p.requires_grad):
                parameter += 0.1 * torch.randn_like(parameter)
        adapted.save_pretrained(tmp_path / "raw")
        expected = forward(copy.deepcopy(adapted).double().eval())
        adapted.save_pretrained(
            tmp_path / "whole", path_initial_model_for_weight_conversion=str(tmp_path / "start")
        )
    with pytest.raises(gm.GamMergeError, match="init_lora_weights"):
        gm.merge([tmp_path / "raw"], out=tmp_path / "out")
    gm.merge([tmp_path / "whole"], out=tmp_path / "out")
    base = forward(model("llama"))
    assert (
        relative(forward(load("llama", tmp_path / "out")) - base, expected - base) < 1e-4
    )  # svd of the base, fp32


@pytest.mark.parametrize("position", [0, 1])
def test_trained_modules_are_kept(position: int, tmp_path: Path) -> None:
    """PEFT put the base's copy in the place of the first adapter's module, and dropped the second's."""
    configs = [Q, Q]
    configs[position] = {**Q, "modules_to_save": ["lm_head"]}
    paths = [save(tmp_path / name, "llama", i, **configs[i]) for i, name in enumerate("ab")]
    gm.merge(paths, method="mean", out=tmp_path / "out")
    key = "base_model.model.lm_head.weight"
    source, merged = (
        load_file(p / "adapter_model.safetensors")[key] for p in (paths[position], tmp_path / "out")
    )
    assert torch.equal(source, merged)
    assert load("llama", tmp_path / "out").get_base_model().lm_head.weight.float().equal(source)


def test_unequal_ranks_can_be_loaded_again(tmp_path: Path) -> None:
    """peft#3737: merges of rank_pattern adapters could not be loaded, and unequal ranks crashed."""
    first = {**Q, "r": 2, "rank_pattern": {"layers.1.self_attn.q_proj": 6}}
    second = {
        **Q,
        "r": 5,
        "rank_pattern": {"layers.0.self_attn.q_proj": 3},
        "alpha_pattern": {"q_proj": 7},
    }
    merged_as_dense_mean("llama", first, second, tmp_path)


@pytest.mark.parametrize("layer", ["line", "space"])
def test_convolutions_of_one_and_three_dimensions(layer: str, tmp_path: Path) -> None:
    """peft#3769: the svd family crashed on Conv1d and Conv3d."""
    config = {"target_modules": [layer], "init_lora_weights": False}
    merged_as_dense_mean("conv", config, config, tmp_path)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, -1.0], [0.5, -2.0]])
def test_no_cross_terms_and_negative_weights(weights: list[float], tmp_path: Path) -> None:
    """peft#3004: B_1 A_2 and B_2 A_1 got into linear merges; peft#2796: negative weights."""
    generator = torch.Generator().manual_seed(0)
    factors = [{"q": random_factors(generator, 9, 8, 3)} for _ in weights]
    sources = [
        write_adapter(tmp_path / name, f, lora_alpha=6)
        for name, f in zip("ab", factors, strict=True)
    ]
    merged = gm.merge(sources, method="sum", weights=weights).adapter.modules["q"].delta()
    expected: Tensor = sum(
        2 * w * b @ a for w, f in zip(weights, factors, strict=True) for b, a in f.values()
    )
    assert relative(merged, expected) < 1e-12


def test_list_and_regex_of_target_modules(tmp_path: Path) -> None:
    """PEFT raised for a mix of the two."""
    regex = {**Q, "target_modules": r".*layers\.1\.self_attn\.(q|v)_proj"}
    merged_as_dense_mean("llama", Q, regex, tmp_path)


def test_experts(tmp_path: Path) -> None:
    """PEFT raised for target_parameters."""
    config = {
        "target_modules": [],
        "target_parameters": ["mlp.experts.gate_up_proj"],
        "init_lora_weights": False,
    }
    merged_as_dense_mean("mixtral", config, config, tmp_path)


def test_experts_of_other_parameters_are_refused(tmp_path: Path) -> None:
    """The keys number the parameters without naming them: the first of one set is not the first of another."""
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    paths = [
        save(tmp_path / n[4:8] / n[-9:], "mixtral", 0, target_modules=[], target_parameters=[n])
        for n in names
    ]
    with pytest.raises(gm.GamMergeError, match=r"mlp\.experts"):
        gm.merge(paths)


def test_every_adapter_needs_a_weight(tmp_path: Path) -> None:
    """PEFT ignored the adapters beyond a short list of weights."""
    source = write_adapter(tmp_path / "a", {"q": (torch.ones(4, 1), torch.ones(1, 3))})
    with pytest.raises(gm.GamMergeError, match="1 weights for 2 adapters"):
        gm.merge([source, source], weights=[1.0])


def test_an_output_that_exists_is_an_error(tmp_path: Path) -> None:
    """PEFT silently kept the old adapter of that name."""
    source = write_adapter(tmp_path / "a", {"q": (torch.ones(4, 1), torch.ones(1, 3))})
    gm.merge([source], out=tmp_path / "out")
    with pytest.raises(gm.GamMergeError, match="exists"):
        gm.merge([source], out=tmp_path / "out")


def test_other_kinds_of_adapter_are_refused(tmp_path: Path) -> None:
    """peft#1647."""
    config = AdaLoraConfig(target_modules=["q_proj"], total_step=10)
    with quiet():
        get_peft_model(copy.deepcopy(model("llama")).float(), config).save_pretrained(
            tmp_path / "a"
        )
    with pytest.raises(gm.GamMergeError, match="ADALORA"):
        gm.load(tmp_path / "a")


def test_no_base_model_is_needed(tmp_path: Path) -> None:
    """PEFT holds the whole model to combine adapters of it."""
    source = save(tmp_path / "a", "llama", 0, **Q)
    config = json.loads((source / "adapter_config.json").read_text())
    (source / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "/nowhere/at/all"})
    )
    assert gm.merge([source, source], out=tmp_path / "out").adapter.base_model == "/nowhere/at/all"


def test_one_directory_that_is_the_adapter(tmp_path: Path) -> None:
    """peft#699: PEFT wrote every adapter of the model, and the merge into a subfolder."""
    source = save(tmp_path / "a", "llama", 0, **Q)
    gm.merge([source], out=tmp_path / "out")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert all(path.is_file() for path in (tmp_path / "out").iterdir())
    with quiet():
        adapted = PeftModel.from_pretrained(copy.deepcopy(model("llama")).float(), tmp_path / "out")
    assert list(adapted.peft_config) == ["default"]
