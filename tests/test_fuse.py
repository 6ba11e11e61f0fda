"""Fused models: what PEFT's merge_and_unload computes, and everything else of the base as it was."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_factors, relative, write_adapter
from peft import PeftModel
from real import forward_adapted, save_adapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_cli import run
from transformers import AutoModelForCausalLM

import gam_merge as gm

Tensors = dict[str, torch.Tensor]


def stored(path: Path) -> Tensors:
    return {
        key: value for file in path.glob("*.safetensors") for key, value in load_file(file).items()
    }


def save_base(
    model: Any, path: Path, dtype: torch.dtype = torch.float32, shard: str = "1GB"
) -> Path:
    copy.deepcopy(model).to(dtype).save_pretrained(path, max_shard_size=shard)
    (path / "tokenizer.json").write_text("{}")
    (path / "pytorch_model.bin").write_bytes(b"x")
    return path


def fused_by_peft(base: Path, adapter: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


@pytest.mark.parametrize("shard", ["1GB", "8KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_merge_and_unload(llama, shard, dtype, tmp_path):
    base = save_base(llama, tmp_path / "base", dtype, shard)
    adapter = save_adapter(llama, tmp_path / "adapter", r=4, lora_alpha=10, use_rslora=True)
    report = gm.fuse(base, adapter, tmp_path / "out")
    ours, theirs, before = (
        stored(tmp_path / "out"),
        fused_by_peft(base, adapter).state_dict(),
        stored(base),
    )
    assert ours.keys() == before.keys()
    changed = {f"{module.name}.weight" for module in report.modules}
    for key, value in ours.items():
        assert value.dtype == dtype
        if key in changed:
            _check_rounded_alike(value, theirs[key], before[key])
        else:
            assert torch.equal(value, before[key])
    assert len(changed) == 6
    assert relative(
        forward_adapted(AutoModelForCausalLM.from_pretrained(tmp_path / "out").float()),
        forward_adapted(fused_by_peft(base, adapter).float()),
    ) < (1e-5 if dtype == torch.float32 else 1e-2)


def _check_rounded_alike(ours: torch.Tensor, theirs: torch.Tensor, before: torch.Tensor) -> None:
    """To 1e-6 in float32; elsewhere to one unit in the last place of the largest of the three numbers added."""
    assert not torch.equal(ours, before)
    if ours.dtype == torch.float32:
        assert relative(ours, theirs) < 1e-6
        return
    largest = torch.stack([ours, theirs, before]).abs().amax(0).double()
    unit = torch.finfo(ours.dtype).eps * 2.0 ** largest.log2().floor()
    assert ((ours.double() - theirs.double()).abs() <= unit).all()


def test_files(llama, tmp_path):
    """Shards and index as in the base, its config and tokenizer with them, nothing else."""
    base = save_base(llama, tmp_path / "base", shard="8KB")
    adapter = save_adapter(llama, tmp_path / "adapter")
    seen: list[tuple[int, int]] = []
    gm.fuse(
        base, adapter, tmp_path / "out", progress=lambda done, total: seen.append((done, total))
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in base.iterdir()} - {"pytorch_model.bin"} | {
        "fuse_report.json"
    }
    assert sum(name.endswith(".safetensors") for name in names) > 2
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    for path in base.glob("*.safetensors"):
        with safe_open(path, "pt") as theirs, safe_open(tmp_path / "out" / path.name, "pt") as ours:
            assert set(ours.keys()) == set(theirs.keys())
            assert ours.metadata()["format"] == "pt"
    assert seen[-1] == (len(stored(base)), len(stored(base)))
    report = json.loads((tmp_path / "out" / "fuse_report.json").read_text())
    module = report["modules"][0]
    delta = gm.load(adapter).modules[module["name"]].delta()
    assert module["delta_norm"] == pytest.approx(float(delta.norm()), rel=1e-6)
    assert module["weight_norm"] == pytest.approx(
        float(stored(base)[f"{module['name']}.weight"].norm()), rel=1e-6
    )


def test_conv1d(gpt2, tmp_path):
    """Whatever the adapter's own fan_in_fan_out says: PEFT leaves there what held for the layer that it saw last."""
    base = save_base(gpt2, tmp_path / "base")
    adapter = save_adapter(
        gpt2, tmp_path / "adapter", target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True
    )
    theirs = fused_by_peft(base, adapter).state_dict()
    config = json.loads((adapter / "adapter_config.json").read_text())
    for said in (True, False):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": said}))
        gm.fuse(base, adapter, tmp_path / f"out-{said}")
        ours = stored(tmp_path / f"out-{said}")
        assert len(ours) == len(stored(base))
        assert all(
            (value - theirs[key]).norm() <= 1e-6 * theirs[key].norm() for key, value in ours.items()
        )


def test_checkpoint_without_the_head(gpt2, tmp_path):
    """GPT-2 on the Hub is the bare transformer: its keys lack a prefix that the adapter's names have."""
    save_base(gpt2.transformer, tmp_path / "base")
    assert "h.0.attn.c_attn.weight" in stored(tmp_path / "base")
    adapter = save_adapter(
        gpt2, tmp_path / "adapter", target_modules=["c_attn"], fan_in_fan_out=True
    )
    gm.fuse(tmp_path / "base", adapter, tmp_path / "out")
    save_base(gpt2, tmp_path / "whole")
    gm.fuse(tmp_path / "whole", adapter, tmp_path / "whole-out")
    ours, whole = stored(tmp_path / "out"), stored(tmp_path / "whole-out")
    assert all(torch.equal(value, whole[f"transformer.{key}"]) for key, value in ours.items())


def test_tensors_of_any_kind_are_carried_along(llama, tmp_path):
    base = save_base(llama, tmp_path / "base")
    more = {
        "ids": torch.arange(3),
        "mask": torch.tensor([True, False]),
        "eight": torch.ones(2, 2).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(2.0),
        "none": torch.zeros(0, 4),
    }
    save_file({**stored(base), **more}, base / "model.safetensors")
    gm.fuse(base, save_adapter(llama, tmp_path / "adapter"), tmp_path / "out")
    after = stored(tmp_path / "out")
    for key, value in more.items():
        assert (after[key].dtype, after[key].shape) == (value.dtype, value.shape)
        assert (
            after[key].flatten().view(torch.uint8).tolist()
            == value.flatten().view(torch.uint8).tolist()
        )


def test_mistakes_write_nothing(llama, tmp_path):
    base = save_base(llama, tmp_path / "base")
    adapter = save_adapter(llama, tmp_path / "adapter")
    generator = torch.Generator().manual_seed(0)
    wide = write_adapter(
        tmp_path / "wide", {"model.layers.0.self_attn.q_proj": random_factors(generator, 32, 32, 2)}
    )
    alien = write_adapter(
        tmp_path / "alien", {"encoder.block.0.k": random_factors(generator, 24, 24, 2)}
    )
    quantised = save_base(llama, tmp_path / "quantised")
    tensors = stored(quantised)
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(24, 12, dtype=torch.uint8)
    save_file(tensors, quantised / "model.safetensors")
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"x")
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments, message in (
        ((base, wide), r"q_proj is \(32, 32\) in .*wide and is \(24, 24\) in .*base"),
        (
            (base, alien),
            r"has no tensor encoder\.block\.0\.k\.weight; the adapter belongs to another base model",
        ),
        (
            (quantised, adapter),
            r"q_proj\.weight is \(24, 12\) uint8; name a base model that is not quantised",
        ),
        ((tmp_path / "pickle", adapter), r"must hold one safetensors file.* got: none"),
        ((tmp_path / "nowhere", adapter), r"nowhere: no such directory"),
    ):
        with pytest.raises(gm.GamMergeError, match=message):
            gm.fuse(*arguments, tmp_path / "out")
    for force in (False, True):
        with pytest.raises(gm.GamMergeError, match=r"base: is a source"):
            gm.fuse(base, adapter, base, force=force)
        with pytest.raises(gm.GamMergeError, match=r"adapter: is a source"):
            gm.fuse(base, adapter, adapter, force=force)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_force_replaces_what_we_wrote(llama, tmp_path):
    base = save_base(llama, tmp_path / "base", shard="8KB")
    adapter = save_adapter(llama, tmp_path / "adapter")
    other = save_base(llama, tmp_path / "other")
    gm.fuse(base, adapter, tmp_path / "out")
    with pytest.raises(gm.GamMergeError, match="already exists"):
        gm.fuse(base, adapter, tmp_path / "out")
    gm.fuse(base, adapter, tmp_path / "out", force=True)
    with pytest.raises(gm.GamMergeError, match="neither empty nor an output that gam-merge wrote"):
        gm.fuse(base, adapter, other, force=True)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(gm.GamMergeError, match="neither empty nor an output that gam-merge wrote"):
        gm.fuse(base, adapter, tmp_path / "out", force=True)


KEY = "model.layers.0.self_attn.q_proj"


def plain_base(path: Path, weight: torch.Tensor) -> Path:
    """A model of one linear layer."""
    path.mkdir()
    save_file({f"{KEY}.weight": weight, "other": torch.ones(2)}, path / "model.safetensors")
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(
    ("dtype", "size", "least", "most"),
    [
        (torch.bfloat16, 1e-5, 0.2, 0.4),
        (torch.bfloat16, 1e-3, 0.97, 1.01),
        (torch.float32, 1e-5, 0.999, 1.001),
        (torch.float32, 2e-10, 0.2, 0.8),
    ],
)
def test_what_rounding_leaves_of_a_delta(dtype, size, least, most, dora, tmp_path):
    """<R, D> / |D|^2, D by float64 and R from the files; weights of rms 0.02 as in trained models."""
    generator = torch.Generator().manual_seed(0)
    weight = (0.02 * torch.randn(256, 256, generator=generator)).to(dtype)
    base = plain_base(tmp_path / "base", weight)
    b, a = random_factors(generator, 256, 256, 4, torch.float32)
    b = b * size / float((b @ a).square().mean().sqrt())
    adapter = write_adapter(tmp_path / "adapter", {KEY: (b, a)}, use_dora=dora)
    before, delta = weight.double(), b.double() @ a.double()
    if dora:
        magnitude = before.norm(dim=1).float()
        path = adapter / "adapter_model.safetensors"
        key = f"base_model.model.{KEY}.lora_magnitude_vector"
        save_file({**load_file(path), key: magnitude}, path)
        moved = before + delta
        delta = moved * (magnitude.double() / moved.norm(dim=1)).unsqueeze(1) - before
    report = gm.fuse(base, adapter, tmp_path / "out")
    change = stored(tmp_path / "out")[f"{KEY}.weight"].double() - before
    expected = float((change * delta).sum() / delta.square().sum())
    # D itself is computed in float32: of a DoRA to one unit of its norms
    tolerance = 0.02 if dora and size < 1e-8 else 1e-4
    assert report.survival == pytest.approx(expected, abs=tolerance)
    assert report.survival == report.modules[0].survival
    assert least < report.survival < most
    warned = [note for note in report.notes if "survives the rounding" in note]
    assert len(warned) == (report.survival < 0.9)
    data = json.loads((tmp_path / "out" / "fuse_report.json").read_text())
    assert data["survival"] == data["modules"][0]["survival"] == report.survival


BROKEN = {
    "lora_A": ({"a": float("nan")}, "module .*q_proj has NaN or Inf in factor A"),
    "lora_B": ({"b": float("inf")}, "module .*q_proj has NaN or Inf in factor B"),
    "overflow": ({"alpha": 1e6, "dtype": torch.float16}, "do not fit into float16"),
    "row_of_zero": (
        {"base": 0.0, "b": 0.0, "magnitude": 1.0},
        "a row of the weight plus its delta",
    ),
    "magnitude": ({"magnitude": float("nan")}, "NaN or Inf in the magnitudes"),
    "base": ({"base": float("nan")}, "the weight of the base model has NaN or Inf"),
    "saved": ({"saved": float("nan")}, "tensor other.weight has NaN or Inf"),
    "saved_overflow": ({"saved": 1e30, "dtype": torch.float16}, "do not fit into float16"),
    "bias": ({"bias": float("inf")}, "tensor .*lora_B.bias has NaN or Inf"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_numbers_that_are_none_are_named_and_nothing_is_written(name, tmp_path):
    def build(
        a=1.0,
        b=1.0,
        alpha=2.0,
        base=1.0,
        dtype=torch.float32,
        magnitude=None,
        saved=None,
        bias=None,
    ):
        path = plain_base(tmp_path / "base", torch.full((4, 4), base, dtype=dtype))
        tensors = load_file(path / "model.safetensors")
        more = {"other.weight": torch.ones(2, 2, dtype=dtype), f"{KEY}.bias": torch.ones(4)}
        save_file({**tensors, **more}, path / "model.safetensors")
        factors = {KEY: (torch.full((4, 2), b), torch.full((2, 4), a))}
        config = {
            "use_dora": magnitude is not None,
            "lora_alpha": alpha,
            "lora_bias": bias is not None,
        }
        adapter = write_adapter(
            tmp_path / "adapter", factors, modules_to_save=["other"] if saved else None, **config
        )
        weights = load_file(adapter / "adapter_model.safetensors")
        stem = f"base_model.model.{KEY}"
        if magnitude is not None:
            weights[f"{stem}.lora_magnitude_vector"] = torch.full((4,), magnitude)
        if saved is not None:
            weights["base_model.model.other.weight"] = torch.full((2, 2), saved)
        if bias is not None:
            weights[f"{stem}.lora_B.bias"] = torch.full((4,), bias)
        save_file(weights, adapter / "adapter_model.safetensors")
        return path, adapter

    options, message = BROKEN[name]
    base, adapter = build(**options)
    with pytest.raises(gm.GamMergeError, match=f"^{adapter}: .*{message}"):
        gm.fuse(base, adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    done = run(["fuse", "base", "adapter", "-o", "out", "--json"], tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_fusing_twice_is_fusing_the_sum(llama, tmp_path):
    """A model that we wrote is a base as good as any."""
    base = save_base(llama, tmp_path / "base")
    adapters = [save_adapter(llama, tmp_path / f"adapter-{i}", seed=i) for i in range(2)]
    gm.fuse(base, adapters[0], tmp_path / "once")
    gm.fuse(tmp_path / "once", adapters[1], tmp_path / "twice")
    gm.merge(adapters, method="sum", rank=16, out=tmp_path / "sum")
    gm.fuse(base, tmp_path / "sum", tmp_path / "together")
    twice, together = stored(tmp_path / "twice"), stored(tmp_path / "together")
    assert all(relative(value, together[key]) < 1e-6 for key, value in twice.items())


def test_command(llama, tmp_path):
    save_base(llama, tmp_path / "base")
    save_adapter(llama, tmp_path / "adapter")
    done = run(["fuse", "base", "adapter", "-o", "out", "-v"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("fuse: 6 modules of base\n")
    assert "model.layers.0.mlp.down_proj" in done.stdout
    known = run(["fuse", "base", "adapter", "-o", "out", "--force", "--json"], tmp_path)
    report = json.loads(known.stdout)
    assert f"norm is {100 * report['relative_norm']:.1f} %" in done.stdout
    assert report == json.loads((tmp_path / "out" / "fuse_report.json").read_text())
    failed = run(["fuse", "adapter", "base", "-o", "other"], tmp_path)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.count("\n") == 1
