"""What is written: its ranks, that every reader finds the same delta in it, and what a server would refuse."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import adapter, random_factors, relative, write_adapter
from safetensors.torch import load_file
from torch import Tensor
from variants import VARIANTS, base, forward, load, model, quiet, save

import gam_merge as gm
from gam_merge._state_dict import from_state_dict
from gam_merge._write.adapter import RECIPE_NAME


def decaying(
    generator: torch.Generator, m: int, n: int, r: int, decay: float
) -> tuple[Tensor, Tensor]:
    """B (m, r), A (r, n) whose product has the singular values decay^0, decay^1, ..."""
    u, v = (
        torch.linalg.qr(torch.randn(size, r, generator=generator, dtype=torch.float64))[0]
        for size in (m, n)
    )
    return u * decay ** torch.arange(r), v.mT.contiguous()


@pytest.fixture
def pair() -> list[gm.Adapter]:
    """Two adapters of rank 6 on a module that needs few ranks and on one that needs many."""
    generator = torch.Generator().manual_seed(0)
    return [
        adapter(
            {
                "layers.0.q": decaying(generator, 24, 20, 6, 0.1),
                "layers.1.q": decaying(generator, 24, 20, 6, 0.9),
            },
            source=name,
        )
        for name in "ab"
    ]


def least_rank(delta: Tensor, energy: float) -> int:
    kept = torch.linalg.svdvals(delta).square().cumsum(0) / delta.square().sum()
    return int((kept < energy - 1e-12).sum()) + 1


def mean(adapters: list[gm.Adapter], name: str) -> Tensor:
    return sum(a.modules[name].delta() for a in adapters) / len(adapters)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_energy_is_the_least_rank_that_keeps_it(energy: float, pair: list[gm.Adapter]) -> None:
    result = gm.merge(pair, method="mean", energy=energy)
    needed = {name: least_rank(mean(pair, name), energy) for name in pair[0].modules}
    assert (
        {m.rank for m in result.adapter.modules.values()}
        == {result.report.rank}
        == {max(needed.values())}
    )
    assert all(module.energy_kept >= energy - 1e-9 for module in result.report.modules)
    alone = gm.merge(pair, method="mean", energy=energy, per_module_rank=True)
    assert {name: m.rank for name, m in alone.adapter.modules.items()} == needed
    for name, module in alone.adapter.modules.items():
        lost = 1 - relative(module.delta(), mean(pair, name)) ** 2
        assert lost >= energy - 1e-9


def test_max_rank_is_a_limit(pair: list[gm.Adapter]) -> None:
    assert gm.merge(pair, method="mean", energy=1.0, max_rank=4).report.rank == 4
    assert gm.merge(pair, method="mean", energy=0.5, max_rank=400).report.rank < 12
    assert gm.merge(pair, method="gam", max_rank=3).report.rank == 3
    assert gm.merge(pair, method="gam", max_rank=30).report.rank == 6


def test_per_module_rank_drops_what_is_empty(pair: list[gm.Adapter], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    b, a = random_factors(generator, 24, 20, 6)
    b[:, 2:] = 0  # rank 2 by its values
    sources = [adapter({"layers.0.q": (b, a), "layers.1.q": random_factors(generator, 24, 20, 6)})]
    result = gm.merge(sources, per_module_rank=True)
    assert {name: m.rank for name, m in result.adapter.modules.items()} == {
        "layers.0.q": 2,
        "layers.1.q": 6,
    }
    assert result.adapter.config["r"] == 6
    assert (
        result.adapter.config["rank_pattern"]
        == result.adapter.config["alpha_pattern"]
        == {r"^layers\.0\.q": 2}
    )
    assert any("llama.cpp" in note for note in result.report.notes)


def test_a_module_of_zeros_keeps_a_rank() -> None:
    b, a = random_factors(torch.Generator().manual_seed(0), 9, 8, 3)
    merged = gm.merge([adapter({"w": (b, a), "z": (0 * b, a)})], per_module_rank=True).adapter
    assert {name: module.rank for name, module in merged.modules.items()} == {"w": 3, "z": 1}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rank": 4, "energy": 0.9}, "cannot be combined"),
        ({"rank": 4, "max_rank": 8}, "cannot be combined"),
        ({"energy": 0.0}, "energy"),
        ({"energy": 1.5}, "energy"),
        ({"max_rank": 0}, "max_rank"),
        ({"max_rank": 2.5}, "max_rank"),
        ({"target": "tgi"}, "tgi"),
    ],
)
def test_refused(settings: dict[str, Any], named: str, pair: list[gm.Adapter]) -> None:
    with pytest.raises(gm.GamMergeError, match=named):
        gm.plan(pair, **settings)


@pytest.mark.parametrize(
    "name", ["linear", "experts", "conv_grouped", "multihead_attention", "embedding", "t5"]
)
def test_per_module_rank_is_read_by_peft(name: str, tmp_path: Path) -> None:
    kind, config = VARIANTS[name]
    source = save(tmp_path / "a", kind, 0, **{"init_lora_weights": False, **config})
    with quiet():
        result = gm.merge([source, source], out=tmp_path / "out", energy=0.8, per_module_rank=True)
    assert len(set(result.adapter.config["rank_pattern"].values())) or name == "experts"
    again = gm.merge(
        [tmp_path / "out"], method="mean", out=tmp_path / "padded"
    )  # one rank: no patterns
    assert not again.adapter.config["rank_pattern"]
    base = forward(model(kind))
    effect = forward(load(kind, tmp_path / "out")) - base
    assert relative(forward(load(kind, tmp_path / "padded")) - base, effect) < 1e-5


@pytest.fixture
def grouped() -> gm.Adapter:
    """A plain convolution of rank 5, and two of 4 and 6 groups, whose ranks are as many."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, rank, groups in (("plain", 5, 1), ("four", 4, 4), ("six", 6, 6)):
        tensors[f"{name}.lora_A.weight"] = torch.randn(
            rank, 3, 2, generator=generator, dtype=torch.float64
        )
        tensors[f"{name}.lora_B.weight"] = torch.randn(
            12, rank // groups, 1, generator=generator, dtype=torch.float64
        )
    return from_state_dict(tensors, {"lora_alpha": 2})


@pytest.mark.parametrize(
    ("settings", "ranks"),
    [
        ({}, {"plain": 12, "four": 12, "six": 12}),
        ({"rank": 24}, {"plain": 24, "four": 24, "six": 24}),
        ({"max_rank": 36}, {"plain": 12, "four": 12, "six": 12}),
        ({"energy": 1.0}, {"plain": 12, "four": 12, "six": 12}),
        ({"energy": 1.0, "per_module_rank": True}, {"plain": 5, "four": 4, "six": 6}),
    ],
)
def test_ranks_that_groups_of_convolutions_share(
    settings: dict[str, Any], ranks: dict[str, int], grouped: gm.Adapter
) -> None:
    merged = gm.merge([grouped], **settings).adapter
    assert {name: module.rank for name, module in merged.modules.items()} == ranks
    for name, module in merged.modules.items():
        assert relative(module.delta(), grouped.modules[name].delta()) < 1e-9


@pytest.mark.parametrize("name", ["rank", "max_rank"])
def test_a_rank_that_groups_do_not_share(name: str, grouped: gm.Adapter) -> None:
    with pytest.raises(
        gm.GamMergeError,
        match=r"rank must be a multiple of 12, which the groups of a convolution.*got 8",
    ):
        gm.plan([grouped], **{name: 8})


# The rules by which readers scale a module, each written from its source.


def by_peft(config: dict[str, Any], module: str, rank: int) -> float:
    """peft/tuners/lora/layer.py: alpha / r of the module, from patterns where they match (get_pattern_key)."""
    from peft.utils.other import get_pattern_key

    alphas, ranks = config["alpha_pattern"], config["rank_pattern"]
    alpha = alphas.get(get_pattern_key(alphas, module), config["lora_alpha"])
    r = ranks.get(get_pattern_key(ranks, module), config["r"])
    assert r == rank  # else PEFT would not load the tensors
    return alpha / (r**0.5 if config["use_rslora"] else r)


def by_vllm(config: dict[str, Any], module: str, rank: int) -> float:
    """vllm/lora/peft_helper.py: lora_alpha / r or lora_alpha / sqrt(r) of the config for all modules."""
    return config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])


def by_llama_cpp(config: dict[str, Any], module: str, rank: int) -> float:
    """llama.cpp, convert_lora_to_gguf.py and llama-adapter.h: lora_alpha over the rank of the tensor itself."""
    return config["lora_alpha"] / rank if config["lora_alpha"] else 1.0


@pytest.mark.parametrize("reader", [by_peft, by_vllm, by_llama_cpp])
def test_every_reader_finds_the_same_delta(reader: Any, tmp_path: Path) -> None:
    """Sources of unlike rank and scale, which the readers would not even agree on by themselves."""
    generator = torch.Generator().manual_seed(0)
    names = ["layers.0.q", "layers.1.q", "layers.10.q"]
    sources = [
        write_adapter(
            tmp_path / "a",
            {n: random_factors(generator, 12, 10, 4) for n in names},
            use_rslora=True,
        ),
        write_adapter(
            tmp_path / "b",
            {
                n: random_factors(generator, 12, 10, r)
                for n, r in zip(names, (2, 6, 3), strict=True)
            },
            lora_alpha=11,
            alpha_pattern={"1.q": 5},
        ),
    ]
    loaded = [gm.load(source) for source in sources]
    gm.merge(sources, method="mean", rank=10, out=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name in names:
        a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        assert relative(reader(config, name, a.shape[0]) * b @ a, mean(loaded, name)) < 1e-6


def test_factors_are_balanced(pair: list[gm.Adapter]) -> None:
    """Half of each singular value on either side: room in fp16, and even steps for further training."""
    for method in ("mean", "gam"):
        for module in gm.merge(pair, method=method, rank=4).adapter.modules.values():
            b, a = (factor[0] for factor in module.factors())
            assert torch.allclose(b.norm(dim=0), a.norm(dim=1), rtol=1e-6)


# variant -> what vLLM and llama.cpp say: what they refuse, or a note, or nothing but yes.
SERVED = {
    "linear": (None, None),
    "rslora": (None, None),
    "rank_pattern": (None, None),
    "alpha_pattern": (None, None),
    "layers_to_transform": (None, None),
    "embedding": ("note: LoRA on embed_tokens for some models only", None),
    "tied_both": (
        "note: LoRA on embed_tokens and lm_head for some",
        "note: on lm_head unless the model ties it",
    ),
    "lm_head": (
        "note: LoRA on lm_head for some models only",
        "note: on lm_head unless the model ties it",
    ),
    "conv1d_of_gpt2": (None, "LoRA on Conv1D (fan_in_fan_out)"),
    "experts": ("LoRA on experts (model.layers.0.mlp.experts)",) * 2,
    "router": ("LoRA on experts (model.layers.0.mlp.experts)",) * 2,
    "gate": (None, None),
    "multihead_attention": (
        None,
        "LoRA on modules that PEFT wraps in one another (attention.base_layer.out_proj)",
    ),
    "experts_alone": ("LoRA on experts (model.layers.0.mlp.experts)",) * 2,
    "dora": ("DoRA; --flatten-dora", "DoRA; --flatten-dora"),
    "modules_to_save": ("modules_to_save (lm_head.weight)",) * 2,
    "modules_to_save_tied": ("whole embedding (lm_head.weight)",) * 2,
    "bias_all": ("bias (model.layers.0.self_attn.k_proj.bias)",) * 2,
    "bias_lora_only": ("bias (model.layers.0.self_attn.q_proj.bias)",) * 2,
    "lora_bias": ("lora_bias (model.layers.0.self_attn.k_proj.lora_B.bias)",) * 2,
    "trainable_tokens": ("trainable_tokens (model.embed_tokens.token_adapter",) * 2,
    "conv": ("LoRA on convolutions (line)",) * 2,
}


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("target", ["vllm", "llama.cpp"])
def test_what_servers_take(name: str, target: str, tmp_path: Path) -> None:
    """In one line each, with what to change."""
    kind, config = VARIANTS[name]
    source = save(tmp_path / "a", kind, 0, **config)
    said = SERVED[name][target == "llama.cpp"]
    given = {"target": target, "base_model": base(kind) if name == "dora" else None}
    if said is None or said.startswith("note: "):
        usual = "--max-lora-rank 8|belongs to the base model"
        notes = [note for note in gm.plan([source], **given).notes if not re.search(usual, note)]
        assert len(notes) == (said is not None)
        assert all(said.removeprefix("note: ") in note for note in notes)
        return
    with pytest.raises(
        gm.GamMergeError, match=re.escape(f"{target} does not serve {said}")
    ) as caught:
        gm.plan([source], **given)
    assert "; " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["vllm", "llama.cpp"])
def test_ranks_of_their_own_for_servers(target: str, pair: list[gm.Adapter]) -> None:
    """vLLM reads the largest rank alone and pads, which folding makes right."""
    settings = {"target": target, "energy": 0.8, "method": "mean", "per_module_rank": True}
    if target == "vllm":
        gm.merge(pair, **settings)
    else:
        with pytest.raises(
            gm.GamMergeError, match=r"lower rank \(layers\.0\.q\).*--per-module-rank"
        ):
            gm.merge(pair, **settings)


@pytest.mark.parametrize(
    ("rank", "served"),
    [(1, 1), (2, 8), (8, 8), (9, 16), (16, 16), (17, 32), (65, 128), (257, 320), (321, 512)],
)
def test_max_lora_rank(rank: int, served: int, pair: list[gm.Adapter]) -> None:
    assert (
        f"serve it with --max-lora-rank {served}" in gm.plan(pair, rank=rank, target="vllm").notes
    )


def test_a_rank_for_vllm(pair: list[gm.Adapter]) -> None:
    assert gm.plan(pair, target="vllm").notes == ("serve it with --max-lora-rank 8",)
    with pytest.raises(gm.GamMergeError, match=r"513.*--rank"):
        gm.plan(pair, rank=513, target="vllm")
    assert gm.merge(pair, method="gam", energy=1.0, target="vllm").report.notes == (
        "serve it with --max-lora-rank 8",
    )


def test_recipe_repeats_ranks_found_from_energy(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    factors = {
        "layers.0.q": decaying(generator, 24, 20, 6, 0.5),
        "layers.1.q": decaying(generator, 24, 20, 6, 0.9),
    }
    source = write_adapter(tmp_path / "a", copy.deepcopy(factors))
    gm.merge([source], energy=0.9, max_rank=5, per_module_rank=True, out=tmp_path / "out")
    gm.merge_recipe(tmp_path / "out" / RECIPE_NAME, out=tmp_path / "again")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
