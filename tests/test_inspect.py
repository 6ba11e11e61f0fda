"""Inspection: figures equal dense ones, damage is named, and what a merge refuses is told instead of raised."""

import json
from math import inf, nan
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file, save_file
from strategies import Problem, problems

import gam_merge as gm
from gam_merge._common.tensors import MemoryTensor
from gam_merge._read.adapter import Extra
from gam_merge._read.layout import ExpertsLayout


def close(value: object, expected: object) -> None:
    np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-8)


@given(problems(sizes=(1, 1)))
def test_figures_equal_dense(problem: Problem):
    (delta,) = problem.deltas
    found = gm.inspect(problem.adapters[0])
    (module,) = found.modules
    s = torch.linalg.svdvals(delta)
    close(module.spectrum, s[: len(module.spectrum)])
    close(module.norm, delta.norm())
    shares = s[s > 1e-12] / s.sum()
    close(module.effective_rank, (-(shares * shares.log()).sum()).exp())
    for rank in (1, 2):
        close(found.total.energy_share(rank), s[:rank].square().sum() / s.square().sum())


def test_parts_and_totals():
    generator = torch.Generator().manual_seed(0)
    shapes = {
        f"layers.{i}.{kind}": (9, 7, 2 + i % 2) for i in (0, 3, 10) for kind in ("attn.q", "mlp.up")
    }
    adapter = helpers.adapter(
        {n: helpers.random_factors(generator, *shape) for n, shape in shapes.items()}, scale=3.0
    )
    found = gm.inspect(adapter)
    assert [module.name for module in found.modules] == sorted(shapes)
    assert list(found.by("layer")) == ["layers.0", "layers.3", "layers.10"]
    assert (found.ranks, found.scales) == ((2, 3), (3.0,))
    assert found.total.parameters == sum(r * (m + n) for m, n, r in shapes.values())
    close(found.total.norm**2, sum(float(m.delta().norm() ** 2) for m in adapter.modules.values()))
    for by in ("layer", "type", "module"):
        close(sum(part.norm**2 for part in found.by(by).values()), found.total.norm**2)


def test_damage_is_named():
    generator = torch.Generator().manual_seed(1)
    factors = {
        name: list(helpers.random_factors(generator, 8, 6, 2))
        for name in ("b0", "a0", "b_nan", "a_inf", "ok")
    }
    factors["b0"][0].zero_()
    factors["a0"][1].zero_()
    factors["b_nan"][0][1, 1] = nan
    factors["a_inf"][1][0, 3] = inf
    found = gm.inspect(helpers.adapter({name: (b, a) for name, (b, a) in factors.items()}))
    modules = {module.name: module for module in found.modules}
    assert {name: module.zero for name, module in modules.items() if module.zero} == {
        "b0": "lora_B",
        "a0": "lora_A",
    }
    assert {name: m.broken for name, m in modules.items() if m.broken} == {
        "b_nan": "lora_B",
        "a_inf": "lora_A",
    }
    assert (found.zero, found.broken) == (("a0", "b0"), ("a_inf", "b_nan"))
    assert [module.name for module in found.modules if module.spectrum] == ["ok"]
    close(found.total.norm, modules["ok"].norm)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(2)
    factors = {
        f"layers.{i}.q": helpers.random_factors(generator, 8, 6, 2, torch.float32) for i in range(3)
    }
    return helpers.write_adapter(tmp_path / "adapter", factors, lora_alpha=6)


def change(directory: Path, **config: object) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def test_from_disk(directory):
    found = gm.inspect(directory)
    assert (found.base_model, found.dtype, found.scales, found.problems) == (
        "base",
        "float32",
        (3.0,),
        (),
    )
    assert found.settings == {}
    change(directory, use_rslora=True, alpha_pattern={"layers.1.q": 4})
    found = gm.inspect(str(directory))
    assert found.settings == {"use_rslora": True, "alpha_pattern": {"layers.1.q": 4}}
    assert found.scales == pytest.approx((4 / 2**0.5, 6 / 2**0.5))
    assert found.source == str(directory)


def test_files_and_the_hub_are_sources_too(directory, hub):
    hub.add("org/name", {path.name: path.read_bytes() for path in directory.iterdir()})
    found = gm.inspect(directory)
    for source in (directory / "adapter_model.safetensors", "org/name"):
        assert gm.inspect(source).modules == found.modules
    total = gm.compare([directory, "org/name", directory / "adapter_model.safetensors"]).total
    close(total.overlap_u, 1.0)
    close(total.cosines, np.ones((3, 3)))


def test_what_a_merge_refuses_is_told(directory):
    """Unknown tensors and half a module: the rest is measured, and a merge still refuses."""
    weights = directory / "adapter_model.safetensors"
    tensors = load_file(weights)
    del tensors["base_model.model.layers.2.q.lora_B.weight"]
    odd = {
        "base_model.model.mystery": torch.ones(3),
        "base_model.model.codes": torch.ones(3, dtype=torch.int8),
    }
    save_file({**tensors, **odd}, weights)
    found = gm.inspect(directory)
    assert any("codes is stored as I8" in problem for problem in found.problems)
    assert [module.name for module in found.modules] == ["layers.0.q", "layers.1.q"]
    assert any("mystery" in problem for problem in found.problems)
    assert any("layers.2.q" in problem for problem in found.problems)
    with pytest.raises(gm.GamMergeError):
        gm.merge([directory, directory])


def test_an_adapter_without_lora_factors(directory):
    save_file(
        {"base_model.model.layers.0.k.ia3_l": torch.ones(3)},
        directory / "adapter_model.safetensors",
    )
    change(directory, peft_type="IA3")
    found = gm.inspect(directory)
    assert found.modules == ()
    assert "IA3" in found.problems[0]
    assert found.total.norm == 0.0
    json.dumps(found.to_dict(), allow_nan=False)


def test_nothing_there():
    with pytest.raises(gm.GamMergeError, match="no such file"):
        gm.inspect("/nowhere/at/all")


def experts(generator: torch.Generator) -> gm.Adapter:
    """Three experts of rank 2 in one module, and a bias beside it."""
    a, b = (
        MemoryTensor(torch.randn(*shape, generator=generator).double())
        for shape in ((6, 7), (9, 6))
    )
    module = gm.LoraModule("layers.0.experts", a, b, 0.5, ExpertsLayout(3, ("up",)))
    bias = Extra("layers.0.experts.bias", "bias", MemoryTensor(torch.ones(9)))
    return gm.Adapter("experts", {module.name: module}, "base", {}, {bias.name: bias})


def test_a_stack_is_measured_matrix_by_matrix():
    generator = torch.Generator().manual_seed(3)
    first, second = experts(generator), experts(generator)
    deltas = [
        adapter.modules["layers.0.experts"].delta() for adapter in (first, second)
    ]  # (3, 9, 7)
    found = gm.inspect(first)
    assert [module.name for module in found.modules] == [f"layers.0.experts[{i}]" for i in range(3)]
    for module, delta in zip(found.modules, deltas[0], strict=True):
        close(module.spectrum, torch.linalg.svdvals(delta)[:2])
    assert found.total.parameters == 6 * 7 + 9 * 6
    assert list(found.by("type")) == ["experts[*]"]
    assert found.extras == {"bias": 1}
    compared = gm.compare([first, second])
    close(compared.total.gram[0, 1], (deltas[0] * deltas[1]).sum())
    assert list(compared.by("type")) == ["experts[*]"]


@pytest.mark.parametrize("key", ["lora_unet_q.lora_down.weight", "unet.q.proj.lora.down.weight"])
def test_an_alpha_for_a_file_without_a_complete_module(key: str, tmp_path: Path) -> None:
    """There is no rank that it could be divided by."""
    save_file({key: torch.ones(2, 4)}, tmp_path / "a.safetensors")
    result = gm.inspect(tmp_path / "a.safetensors", alpha=4)
    assert "has no lora_up (B); the file is incomplete" in result.problems[0]
