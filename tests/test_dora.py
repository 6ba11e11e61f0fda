"""DoRA in, DoRA out: what the merge makes of the base is what its adapters make of it, on average."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import adapter, random_factors, relative, write_adapter
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from variants import VARIANTS, base, dense_mean, forward, fused, load, model, quiet, save

import gam_merge as gm
from gam_merge._common.tensors import read
from gam_merge._deltas import rows
from gam_merge._read import weight
from gam_merge._state_dict import from_state_dict

DORA = {"target_modules": ["q_proj", "v_proj"], "use_dora": True, "init_lora_weights": False}
PLAIN = {"target_modules": ["q_proj", "k_proj"], "init_lora_weights": False}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dora")
    return {
        "dora": save(folder / "dora", "llama", 0, **DORA),
        "other": save(folder / "other", "llama", 1, **{**DORA, "r": 3, "use_rslora": True}),
        "plain": save(folder / "plain", "llama", 2, **PLAIN),
    }


def weights_of(built: Any) -> dict[str, Tensor]:
    return {
        name: value for name, value in built.state_dict().items() if name.endswith("_proj.weight")
    }


def test_without_its_base_it_is_refused_with_the_remedy(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    gm.inspect(saved["dora"])
    for verb in (gm.plan, gm.merge, gm.compare):
        with pytest.raises(gm.GamMergeError, match=r"dora: is a DoRA adapter.*--base MODEL"):
            verb([saved["plain"], saved["dora"]])


def test_with_a_plain_adapter_and_unlike_modules(saved: dict[str, Path], tmp_path: Path) -> None:
    """A plain adapter, or none on a module, is a DoRA whose magnitudes are the norms that are there."""
    paths, weights = [saved["dora"], saved["plain"], saved["other"]], [0.5, 0.2, 0.3]
    gm.merge(
        paths,
        method="mean",
        weights=weights,
        rank=12,
        base_model=base("llama"),
        out=tmp_path / "out",
    )
    before, expected = forward(model("llama")), forward(dense_mean("llama", paths, weights))
    assert relative(forward(load("llama", tmp_path / "out")) - before, expected - before) < 1e-5


def test_modules_that_one_has_alone_are_skipped(saved: dict[str, Path], tmp_path: Path) -> None:
    """With missing="skip" a module of one adapter becomes what that adapter makes of it."""
    paths, shares = (
        [saved["dora"], saved["plain"]],
        {"q_proj": (0.75, 0.25), "v_proj": (1, 0), "k_proj": (0, 1)},
    )
    settings = {"method": "mean", "weights": [3, 1], "rank": 8, "missing": "skip"}
    gm.merge(paths, base_model=base("llama"), out=tmp_path / "out", **settings)
    merged, *alone = (weights_of(fused("llama", path)) for path in (tmp_path / "out", *paths))
    for name, value in merged.items():
        x, y = shares.get(name.split(".")[-2], (0, 1))
        assert relative(value, x * alone[0][name] + y * alone[1][name]) < 1e-6


@pytest.mark.parametrize("method", ["gam", "mean", "ties@core"])
def test_a_cut_changes_no_gain(method: str, saved: dict[str, Path], tmp_path: Path) -> None:
    """However the directions are merged and cut, row norms over those of the base moved are the mean gain."""
    paths = [saved["dora"], saved["other"]]
    gm.merge(paths, method=method, rank=2, base_model=base("llama"), out=tmp_path / "out")
    with quiet():
        merged = load("llama", tmp_path / "out")
        gains = []
        for path in (*paths, tmp_path / "out"):
            layer = load("llama", path).get_submodule(
                "base_model.model.model.layers.0.self_attn.q_proj"
            )
            weight = layer.base_layer.weight + layer.scaling["default"] * (
                layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            )
            gains.append(layer.lora_magnitude_vector["default"].weight / weight.norm(dim=1))
    assert merged.peft_config["default"].use_dora
    assert relative(gains[2].detach(), ((gains[0] + gains[1]) / 2).detach()) < 1e-5


def test_negative_weights(saved: dict[str, Path], tmp_path: Path) -> None:
    """A method that takes sums: the base plus the weighted sum of what each adapter changes in it."""
    paths, weights = [saved["dora"], saved["other"]], [1.2, -0.3]
    gm.merge(paths, method="sum", weights=weights, base_model=base("llama"), out=tmp_path / "out")
    before = weights_of(model("llama"))
    changes = [
        {n: w - before[n] for n, w in weights_of(dense_mean("llama", [p], [1.0])).items()}
        for p in paths
    ]
    with quiet():
        merged = weights_of(load("llama", tmp_path / "out").merge_and_unload())
    for name, value in merged.items():
        expected = before[name] + sum(
            w * change[name] for w, change in zip(weights, changes, strict=True)
        )
        assert relative(value, expected) < 1e-5


def test_magnitudes_that_cancel_are_an_error(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    b, a = random_factors(generator, 6, 5, 2, torch.float32)
    path = write_adapter(tmp_path / "a", {"q": (0 * b, a)}, use_dora=True)
    file, weight = path / "adapter_model.safetensors", torch.randn(6, 5, generator=generator)
    magnitude = {"base_model.model.q.lora_magnitude_vector": 2 * weight.norm(dim=1)}
    save_file({**load_file(file), **magnitude}, file)
    save_file({"q.weight": weight}, tmp_path / "base.safetensors")
    with pytest.raises(gm.GamMergeError, match=r"module q: the magnitudes .* cancel"):
        gm.merge([path], method="sum", weights=[-1.0], base_model=tmp_path / "base.safetensors")


def test_rows_of_length_zero_are_an_error(tmp_path: Path) -> None:
    """DoRA divides by the length of each row, here of a base that the adapter was not trained on."""
    b, a = random_factors(torch.Generator().manual_seed(0), 6, 5, 2, torch.float32)
    path = write_adapter(tmp_path / "a", {"q": (0 * b, a)}, use_dora=True)
    file = path / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.q.lora_magnitude_vector": torch.ones(6)}, file)
    save_file({"q.weight": torch.zeros(6, 5)}, tmp_path / "base.safetensors")
    with pytest.raises(gm.GamMergeError, match="module q: a row of the weight plus its delta is z"):
        gm.merge([path, path], base_model=tmp_path / "base.safetensors")


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_flattened(rank: int, saved: dict[str, Path], tmp_path: Path) -> None:
    """The nearest product of that rank to what the merge changes; all of it at full rank; the loss is told."""
    paths = [saved["dora"], saved["other"]]
    result = gm.merge(
        paths,
        method="mean",
        rank=rank,
        base_model=base("llama"),
        flatten_dora=True,
        out=tmp_path / "out",
    )
    assert result.adapter.config["use_dora"] is False
    before, after = weights_of(model("llama")), weights_of(dense_mean("llama", paths, [0.5, 0.5]))
    for report in result.report.modules:
        key = f"{report.name}.weight"
        u, s, vt = torch.linalg.svd(after[key] - before[key], full_matrices=False)
        nearest = (u[:, :rank] * s[:rank]) @ vt[:rank]
        assert (
            relative(result.adapter.modules[report.name].delta(), nearest) < 1e-4
        )  # two power iterations
        assert report.energy_kept == pytest.approx(
            float(s[:rank].square().sum() / s.square().sum()), rel=1e-4
        )
    gm.plan(paths, rank=8, base_model=base("llama"), flatten_dora=True, target="vllm")
    with pytest.raises(gm.GamMergeError, match="--flatten-dora"):
        gm.plan(paths, rank=8, base_model=base("llama"), target="vllm")


def test_bfloat16_magnitudes_belong_to_the_rounded_factors(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    """The norms are those of the factors that are written, so that rounding turns rows but does not scale them."""
    gm.merge([saved["dora"]], dtype="bf16", base_model=base("llama"), out=tmp_path / "out")
    before, expected = forward(model("llama")), forward(load("llama", saved["dora"]))
    assert relative(forward(load("llama", tmp_path / "out")) - before, expected - before) < 0.03


def test_base_weights_by_module_that_lack_one(saved: dict[str, Path]) -> None:
    name = min(gm.load(saved["dora"]).modules)
    with pytest.raises(gm.GamMergeError, match=f"base_model must hold .* got none for {name}"):
        gm.plan([saved["dora"], saved["other"]], base_model={})


@pytest.mark.parametrize("shard", ["1GB", "4KB"])
def test_base_as_a_directory_in_shards_or_under_another_prefix(
    shard: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    copy.deepcopy(model("llama")).float().save_pretrained(tmp_path / "whole", max_shard_size=shard)
    model("llama").model.float().save_pretrained(tmp_path / "headless", max_shard_size=shard)
    model("llama").double()
    outs = []
    for i, given in enumerate([base("llama"), tmp_path / "whole", tmp_path / "headless"]):
        gm.merge([saved["dora"], saved["other"]], base_model=given, out=tmp_path / f"out{i}")
        outs.append((tmp_path / f"out{i}" / "adapter_model.safetensors").read_bytes())
    assert outs[0] == outs[1] == outs[2]


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("name", ["dora", "dora_embeddings", "dora_conv1d_of_gpt2", "dora_conv"])
def test_a_base_of_many_blocks(
    name: str, flatten: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are read some rows at a time, as they are kept: those of Conv1D lie across."""
    kind, config = VARIANTS[name]
    source = save(tmp_path / "a", kind, 0, **{**config, "init_lora_weights": False})
    monkeypatch.setattr(weight, "_BLOCK", 100)
    monkeypatch.setattr(rows, "_ROWS", 5)
    settings = {"rank": 48, "flatten_dora": True} if flatten else {}
    gm.merge([source], base_model=base(kind), out=tmp_path / "out", **settings)
    before, expected = forward(model(kind)), forward(load(kind, source))
    assert relative(forward(load(kind, tmp_path / "out")) - before, expected - before) < 1e-5


@pytest.mark.parametrize("kind", ["conv", "gpt2"])
def test_another_base_is_refused(kind: str, saved: dict[str, Path]) -> None:
    with pytest.raises(gm.GamMergeError, match="belongs to another base model"):
        gm.plan([saved["dora"]], base_model=base(kind))


def test_base_that_is_not_there(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(gm.GamMergeError, match="no such directory"):
        gm.plan([saved["dora"]], base_model=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "target", "said"),
    [
        (
            "lora_bias",
            "v_proj",
            r"a has model\.layers\.0\.self_attn\.k_proj\.lora_B\.bias and .*d uses DoRA; PEFT does not support",
        ),
        (
            "conv_grouped",
            "plain",
            r"d uses DoRA, which PEFT does not support on grouped, adapted by .*a",
        ),
        (
            "multihead_attention",
            "plain",
            r"d uses DoRA, .* not support on attention\.base_layer\.out_proj, adapted by .*a",
        ),
        (
            "experts_alone",
            "v_proj",
            r"d uses DoRA, .* not support on model\.layers\.0\.mlp\.experts, adapted by .*a",
        ),
    ],
)
def test_what_no_dora_has(name: str, target: str, said: str, tmp_path: Path) -> None:
    kind, config = VARIANTS[name]
    other, trained = (
        save(tmp_path / "a", kind, 0, **config),
        {"target_modules": [target], "use_dora": True},
    )
    with pytest.raises(gm.GamMergeError, match=said):
        gm.plan(
            [other, save(tmp_path / "d", kind, 1, **trained)],
            base_model=base(kind),
            missing="zero",
        )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"base_model.model.q.lora_magnitude_vector": None}, "no lora_magnitude_vector"),
        (
            {"base_model.model.q.lora_magnitude_vector": torch.ones(5)},
            r"6 rows and a lora_magnitude_vector \(5,\)",
        ),
    ],
)
def test_broken_magnitudes(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    factors = {"q": random_factors(torch.Generator().manual_seed(0), 6, 5, 2)}
    path = write_adapter(tmp_path / "a", factors, use_dora=True)
    file = path / "adapter_model.safetensors"
    save_file(
        {key: value for key, value in {**load_file(file), **change}.items() if value is not None},
        file,
    )
    with pytest.raises(gm.GamMergeError, match=named):
        gm.load(path)


def test_keys_of_a_model_in_memory(saved: dict[str, Path]) -> None:
    """There the name of the adapter is in every key, and magnitudes have a weight."""
    adapted = load("llama", saved["dora"])
    state = {key: value for key, value in adapted.state_dict().items() if ".lora_" in key}
    assert sum(key.endswith(".lora_magnitude_vector.default.weight") for key in state) == 4
    for config in (
        adapted.peft_config["default"],
        {"r": 4, "lora_alpha": 6},
    ):  # a bare file says nothing of DoRA
        found = from_state_dict(state, config)
        for name, module in gm.load(saved["dora"]).modules.items():
            assert torch.equal(read(found.modules[name].magnitude), read(module.magnitude).double())
    with pytest.raises(
        gm.GamMergeError, match="has a lora_magnitude_vector, but use_dora is false"
    ):
        from_state_dict(state, {"r": 4, "lora_alpha": 6, "use_dora": False})


@pytest.mark.parametrize("settings", [{"energy": 1.0}, {"per_module_rank": True}])
def test_ranks_that_are_found(
    settings: dict[str, Any], saved: dict[str, Path], tmp_path: Path
) -> None:
    gm.merge([saved["dora"]], base_model=base("llama"), out=tmp_path / "out", **settings)
    before, expected = forward(model("llama")), forward(load("llama", saved["dora"]))
    assert relative(forward(load("llama", tmp_path / "out")) - before, expected - before) < 1e-5


def test_in_memory_and_on_disk_hold_the_same(saved: dict[str, Path], tmp_path: Path) -> None:
    paths = [saved["dora"], saved["plain"]]
    gm.merge(paths, base_model=base("llama"), out=tmp_path / "disk")
    gm.merge(paths, base_model=base("llama")).save(tmp_path / "memory")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "disk" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes()


def test_executor_of_processes_gives_the_same_bytes(saved: dict[str, Path], tmp_path: Path) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    paths = [saved["dora"], saved["other"]]
    gm.merge(paths, base_model=base("llama"), out=tmp_path / "a")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        gm.merge(paths, base_model=base("llama"), executor=pool, out=tmp_path / "b")
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "b" / "adapter_model.safetensors"
    ).read_bytes()


def test_recipe_names_the_base(saved: dict[str, Path], tmp_path: Path) -> None:
    from gam_merge._write.adapter import RECIPE_NAME

    gm.merge(
        [saved["dora"]], base_model=base("llama"), flatten_dora=True, rank=2, out=tmp_path / "out"
    )
    gm.merge_recipe(tmp_path / "out" / RECIPE_NAME, out=tmp_path / "again")
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "again" / "adapter_model.safetensors"
    ).read_bytes()
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["r"] == 2


def test_fused(saved: dict[str, Path], tmp_path: Path) -> None:
    copy.deepcopy(model("llama")).float().save_pretrained(tmp_path / "base")
    gm.fuse(tmp_path / "base", saved["dora"], tmp_path / "out")
    with quiet():
        plain = copy.deepcopy(model("llama")).float()
        theirs = PeftModel.from_pretrained(plain, saved["dora"]).merge_and_unload().state_dict()
    for name, value in load_file(tmp_path / "out" / "model.safetensors").items():
        assert relative(value, theirs[name]) < 1e-6


def test_a_module_that_no_adapter_moves(tmp_path: Path) -> None:
    """Zero deltas with magnitudes of their own still scale the base."""
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    save_file({"q.weight": weight}, tmp_path / "base.safetensors")
    path = write_adapter(
        tmp_path / "a", {"q": (torch.zeros(6, 2), torch.ones(2, 5))}, use_dora=True
    )
    file = path / "adapter_model.safetensors"
    save_file(
        {**load_file(file), "base_model.model.q.lora_magnitude_vector": 3 * weight.norm(dim=1)},
        file,
    )
    plain = adapter({"q": random_factors(torch.Generator().manual_seed(1), 6, 5, 2)})
    assert not gm.load(path).modules["q"].delta().any()
    result = gm.merge([path], base_model=tmp_path / "base.safetensors", flatten_dora=True, rank=5)
    assert relative(result.adapter.modules["q"].delta(), 2 * weight) < 1e-5
    both = gm.merge(
        [path, plain],
        method="mean",
        base_model=tmp_path / "base.safetensors",
        rank=5,
        flatten_dora=True,
    )
    expected = (2 * weight.double() + plain.modules["q"].delta()) / 2
    assert relative(both.adapter.modules["q"].delta(), expected) < 1e-5
