"""Adapters of a mixture of experts as transformers 4 and 5 have it, against PEFT, which loads both."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import relative
from safetensors.torch import load_file, save_file
from torch import Tensor
from variants import dense_mean, forward, fused, load, model, quiet, save

import gam_merge as gm

# Kind of model -> where its experts are in transformers 4, and gate, up, down there.
OLD = {
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
}
NEW = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
HIDDEN, EXPERTS = 16, 3


def old_modules(kind: str) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of every expert's projections in transformers 4, and of q_proj."""
    block, (gate, up, down) = OLD[kind]
    inner = 24 if kind == "mixtral" else 12
    for i in range(2):
        yield f"model.layers.{i}.self_attn.q_proj", HIDDEN, HIDDEN
        for e in range(EXPERTS):
            stem = f"model.layers.{i}.{block}.experts.{e}"
            yield f"{stem}.{gate}", inner, HIDDEN
            yield f"{stem}.{up}", inner, HIDDEN
            yield f"{stem}.{down}", HIDDEN, inner


def save_old(
    path: Path, kind: str, seed: int, *, only: tuple[str, ...] = ("",), router: bool = False,
    ranks: dict[str, int] | None = None, **config: Any,
) -> Path:  # fmt: skip
    """An adapter as PEFT saved it under transformers 4. only: ends of the modules it has."""
    generator = torch.Generator().manual_seed(seed)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "r": 4,
        "lora_alpha": 6,
        **config,
    }
    modules = [entry for entry in old_modules(kind) if entry[0].endswith(only)]
    if router:
        modules += [(f"model.layers.{i}.{OLD[kind][0]}.gate", EXPERTS, HIDDEN) for i in range(2)]
    tensors: dict[str, Tensor] = {}
    for name, m, n in modules:
        r = (ranks or {}).get(name, config["r"])
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(r, n, generator=generator)
        tensors[f"base_model.model.{name}.lora_B.weight"] = 0.1 * torch.randn(
            m, r, generator=generator
        )
    config["target_modules"] = sorted({name.rpartition(".")[2] for name, _, _ in modules})
    config["rank_pattern"] = ranks or {}
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def save_new(path: Path, kind: str, seed: int, **config: Any) -> Path:
    """An adapter as PEFT saves it under transformers 5."""
    settings = {"target_modules": ["q_proj"], "target_parameters": NEW, "init_lora_weights": False}
    return save(path, kind, seed, **{**settings, **config})


def assert_deltas(kind: str, out: Path, expected: torch.nn.Module) -> None:
    """Every weight of the model with the output equals the expected one, and so does what it says.

    1e-5 of each change: factors are written in float32.
    """
    start, actual = model(kind).state_dict(), fused(kind, out).state_dict()
    changed = 0
    for name, weight in expected.state_dict().items():
        change = weight - start[name]
        changed += bool(change.norm() > 1e-9)
        assert (actual[name] - weight).norm() <= 1e-5 * change.norm() + 1e-9, name
    assert changed >= 2
    base = forward(model(kind))
    said = forward(load(kind, out)) - base
    assert relative(said, forward(expected) - base) < 1e-5


@pytest.mark.parametrize("old_first", [True, False])
@pytest.mark.parametrize("kind", OLD)
def test_old_and_new_meet(kind: str, old_first: bool, tmp_path: Path) -> None:
    old = save_old(tmp_path / "old", kind, 1, r=2, lora_alpha=3)
    new = save_new(tmp_path / "new", kind, 2)
    paths = [old, new] if old_first else [new, old]
    result = gm.merge(paths, method="mean", weights=[0.3, 0.7], rank=12, out=tmp_path / "out")
    assert_deltas(kind, tmp_path / "out", dense_mean(kind, paths, [0.3, 0.7]))
    assert result.adapter.modules.keys() == gm.load(new).modules.keys()
    names = {f"model.layers.{i}.{name}" for i in range(2) for name in NEW}
    assert set(result.adapter.config["target_parameters"]) == names


@pytest.mark.parametrize("kind", OLD)
def test_what_peft_converts_is_what_we_stack(kind: str, tmp_path: Path) -> None:
    """PEFT converts an old adapter when it loads it; saved again, it is one of transformers 5."""
    old = save_old(tmp_path / "old", kind, 1)
    loaded = load(kind, old)
    with quiet():
        loaded.float().save_pretrained(tmp_path / "converted")
    converted = gm.load(tmp_path / "converted")
    assert {module.rank for module in converted.modules.values()} == {4, 8}
    merged = gm.merge([old, tmp_path / "converted"], method="mean", rank=8).adapter
    assert merged.modules.keys() == converted.modules.keys()
    for name, module in merged.modules.items():
        assert relative(module.delta(), converted.modules[name].delta()) < 1e-5


def test_old_adapters_alone_stay_as_they_are(tmp_path: Path) -> None:
    paths = [save_old(tmp_path / str(i), "mixtral", i) for i in range(2)]
    result = gm.merge(paths, method="mean", out=tmp_path / "out")
    assert result.adapter.modules.keys() == gm.load(paths[0]).modules.keys()


def dense(path: Path, kind: str, layer: int, expert: int, part: int) -> Tensor:
    """The delta of one projection (gate, up, down) of one expert, from the file of an old adapter."""
    block, names = OLD[kind]
    stem = f"base_model.model.model.layers.{layer}.{block}.experts.{expert}.{names[part]}"
    tensors = load_file(path / "adapter_model.safetensors")
    if f"{stem}.lora_A.weight" not in tensors:
        return torch.zeros(())
    config = json.loads((path / "adapter_config.json").read_text())
    b, a = tensors[f"{stem}.lora_B.weight"].double(), tensors[f"{stem}.lora_A.weight"].double()
    r = a.shape[0]
    return config["lora_alpha"] / (r**0.5 if config.get("use_rslora") else r) * b @ a


FIRST = "model.layers.0.mlp.experts"
CASES: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "gate alone": {"only": ("gate_proj", "down_proj")},
    "up alone": {"only": ("up_proj", "down_proj")},
    "some experts": {"only": ("1.gate_proj", "1.up_proj", "2.up_proj", "2.down_proj")},
    "unlike ranks": {"ranks": {f"{FIRST}.0.gate_proj": 1, f"{FIRST}.2.up_proj": 5, f"{FIRST}.1.down_proj": 3}},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_against_dense_algebra(case: str, tmp_path: Path) -> None:
    """Where PEFT's conversion is wrong (rsLoRA), or refuses (one half, some experts, unlike ranks)."""
    kind = "qwen3_moe"
    old = save_old(tmp_path / "old", kind, 1, **CASES[case])
    new = save_new(tmp_path / "new", kind, 2)
    merged = gm.merge([old, new], method="mean", rank=16, missing="zero").adapter
    stacked = gm.load(new)
    for layer in range(2):
        owner = f"model.layers.{layer}.mlp.experts"
        gate_up, down = merged.modules[f"{owner}.base_layer"], merged.modules[owner]
        for module in (gate_up, down):
            other = stacked.modules[module.name].delta()  # (E, m, n)
            for expert in range(EXPERTS):
                own = 2 * module.delta()[expert] - other[expert]
                parts = (0, 1) if module is gate_up else (2,)
                for rows, part in zip(own.chunk(len(parts)), parts, strict=True):
                    expected = dense(old, kind, layer, expert, part)
                    assert (rows - expected).norm() <= 1e-5 * other.norm(), (layer, expert, part)


def test_router(tmp_path: Path) -> None:
    """It was a linear layer, and is a parameter of a module of its own."""
    old = save_old(tmp_path / "old", "mixtral", 1, router=True)
    new = save_new(tmp_path / "new", "mixtral", 2, target_parameters=[*NEW, "mlp.gate.weight"])
    gm.merge([old, new], method="mean", rank=12, out=tmp_path / "out")
    assert_deltas("mixtral", tmp_path / "out", dense_mean("mixtral", [old, new], [0.5, 0.5]))


def test_other_parameters_are_refused(tmp_path: Path) -> None:
    old = save_old(tmp_path / "old", "mixtral", 1)
    new = save_new(tmp_path / "new", "mixtral", 2, target_parameters=NEW[:1])
    message = (
        r"parameters down_proj and gate_up_proj of 3 experts in .*old and the parameter gate_up"
    )
    with pytest.raises(gm.GamMergeError, match=message):
        gm.merge([old, new])


def test_names_without_experts_stay(tmp_path: Path) -> None:
    """Also those that begin like a component of a pipeline."""
    name = "transformer.blocks.0.attn.q_proj"
    factors = {f"base_model.model.{name}.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    for x, shape in (("A", (12, 16)), ("B", (24, 12))):
        key = f"base_model.model.transformer.blocks.0.experts.lora_{x}.weight"
        save_file({**factors, key: torch.ones(shape)}, tmp_path / f"{x}.safetensors")
    both = load_file(tmp_path / "A.safetensors") | load_file(tmp_path / "B.safetensors")
    config = {"r": 4, "lora_alpha": 4, "base_model_name_or_path": None}
    for folder, tensors in (("plain", factors), ("experts", both)):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "adapter_model.safetensors")
        fields = {**config, "target_parameters": ["experts.w1"] if folder == "experts" else None}
        (tmp_path / folder / "adapter_config.json").write_text(json.dumps(fields))
    merged = gm.merge([tmp_path / "plain", tmp_path / "experts"]).adapter
    assert merged.modules.keys() == {name, "transformer.blocks.0.experts"}


def renamed_copy(path: Path, source: Path, **config: Any) -> Path:
    """A copy of an adapter with other fields in its config."""
    path.mkdir()
    tensors = load_file(source / "adapter_model.safetensors")
    fields = json.loads((source / "adapter_config.json").read_text())
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({**fields, **config}))
    return path


def test_interleaved_experts_are_refused(tmp_path: Path) -> None:
    name = {"base_model_name_or_path": "openai/gpt-oss-20b"}
    old = renamed_copy(tmp_path / "old", save_old(tmp_path / "a", "qwen3_moe", 1), **name)
    new = renamed_copy(tmp_path / "new", save_new(tmp_path / "b", "qwen3_moe", 2), **name)
    message = r"experts\.0\.\w+ cannot be brought into .*openai/gpt-oss-20b interleaves gate and up"
    with pytest.raises(gm.GamMergeError, match=message) as caught:
        gm.merge([old, new], out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert gm.merge([new, new]).adapter.modules  # of one layout


@pytest.mark.parametrize(
    ("suffix", "config", "message"),
    [
        ("fc1.lora_A.weight", {}, r"experts\.0\.fc1 cannot .* none of gate_proj"),
        ("up_proj.lora_magnitude_vector", {"use_dora": True}, "it is DoRA, which PEFT does not"),
        ("up_proj.lora_B.bias", {"lora_bias": True}, "it cannot hold lora_bias"),
    ],
)
def test_what_cannot_be_stacked(
    suffix: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    old = save_old(tmp_path / "a", "qwen3_moe", 1, only=("0.up_proj",))
    tensors = load_file(old / "adapter_model.safetensors")
    for name in [name for name in tensors if name.endswith("lora_A.weight")]:
        stem = name.removesuffix("up_proj.lora_A.weight")
        tensors[f"{stem}{suffix}"] = torch.ones(4, 16) if "fc1" in suffix else torch.ones(12)
        if "fc1" in suffix:
            tensors[f"{stem}fc1.lora_B.weight"] = torch.ones(12, 4)
    save_file(tensors, old / "adapter_model.safetensors")
    old = renamed_copy(tmp_path / "old", old, **config)
    new = save_new(tmp_path / "new", "qwen3_moe", 2)
    with pytest.raises(gm.GamMergeError, match=message):
        gm.merge([old, new])


def test_unlike_shapes_are_refused(tmp_path: Path) -> None:
    old = save_old(tmp_path / "old", "qwen3_moe", 1)
    file = old / "adapter_model.safetensors"
    tensors = copy.copy(load_file(file))
    tensors[f"base_model.model.{FIRST}.1.up_proj.lora_B.weight"] = torch.ones(13, 4)
    save_file(tensors, file)
    new = save_new(tmp_path / "new", "qwen3_moe", 2)
    with pytest.raises(gm.GamMergeError, match=r"1\.up_proj cannot .* it is \(13, 16\), and"):
        gm.merge([old, new])


def test_one_expert_has_no_name_in_mlx(tmp_path: Path) -> None:
    """MLX-LM stacks them, and refuses a file with a name that its model does not have."""
    old = save_old(tmp_path / "old", "qwen3_moe", 1)
    with pytest.raises(gm.GamMergeError, match=r"experts\.0\..* MLX-LM stacks experts"):
        gm.convert(old, format="mlx", out=tmp_path / "out")
