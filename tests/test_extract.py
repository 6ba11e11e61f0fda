"""Adapters extracted from two models, against the dense decomposition of their difference, and by PEFT."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import relative
from real import forward, save_adapter
from test_cli import run
from test_fuse import save_base, stored

import gam_merge as gm


def save_tuned(
    model: Any, path: Path, *, size: float = 0.1, also: tuple[str, ...] = (), **options: Any
) -> Path:
    """The model with random numbers added to the weights of its linear layers, and of the modules ``also``."""
    tuned, generator = copy.deepcopy(model), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "_proj" in name or "c_" in name or any(part in name for part in also):
                parameter.add_(
                    size
                    * torch.randn(parameter.shape, generator=generator)
                    * (parameter.dim() == 2)
                )
                if any(part in name for part in also):
                    parameter.add_(size)
    return save_base(tuned, path, **options)


def difference(base: Path, tuned: Path, module: str) -> torch.Tensor:
    return (
        stored(tuned)[f"{module}.weight"].double() - stored(base)[f"{module}.weight"].double()
    ).detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 6])
def test_error_is_nearly_the_least(llama, rank, dtype, tmp_path):
    base = save_base(llama, tmp_path / "base", dtype)
    tuned = save_tuned(llama, tmp_path / "tuned", dtype=dtype, shard="8KB")
    result = gm.extract(base, tuned, rank=rank, out=tmp_path / "out")
    written = gm.load(tmp_path / "out")
    assert written.rank == rank
    assert written.dtype == dtype
    assert len(written.modules) == 14
    for module in result.report.modules:
        x = difference(base, tuned, module.name)
        error = relative(written.modules[module.name].delta(), x)
        least = float(torch.linalg.svdvals(x)[rank:].norm() / x.norm())
        assert module.norm == pytest.approx(float(x.norm()), rel=1e-6)
        assert module.residual == pytest.approx(error, rel=1e-5)
        assert error < 1.01 * least + 2 * torch.finfo(dtype).eps
    x = torch.cat([difference(base, tuned, m.name).flatten() for m in result.report.modules])
    y = torch.cat([written.modules[m.name].delta().flatten() for m in result.report.modules])
    assert result.report.residual == pytest.approx(relative(y, x), rel=1e-5)


def test_what_was_fused_comes_out_again(llama, tmp_path):
    """At the rank that it went in with, and nowhere else."""
    base = save_base(llama, tmp_path / "base")
    adapter = save_adapter(llama, tmp_path / "adapter", r=3, target_modules=["q_proj", "down_proj"])
    gm.fuse(base, adapter, tmp_path / "tuned")
    result = gm.extract(base, tmp_path / "tuned", energy=1 - 1e-6, out=tmp_path / "out")
    before, after = gm.load(adapter), gm.load(tmp_path / "out")
    assert after.rank == result.report.rank == 3
    assert after.modules.keys() == before.modules.keys()
    for name, module in before.modules.items():
        assert relative(after.modules[name].delta(), module.delta()) < 1e-5
    assert result.report.residual < 1e-5
    assert result.report.left_out == {}
    assert result.report.energy_kept == pytest.approx(1.0)


@pytest.mark.parametrize("energy", [0.3, 0.9, 1.0])
def test_energy(llama, energy, tmp_path):
    """Each module keeps its share at the least rank that does, padded with zeros to the largest of them."""
    base, tuned = save_base(llama, tmp_path / "base"), save_tuned(llama, tmp_path / "tuned")
    result = gm.extract(base, tuned, energy=energy)
    for module in result.report.modules:
        s = torch.linalg.svdvals(difference(base, tuned, module.name)).square()
        kept = s.cumsum(0) / s.sum()
        assert module.rank == int((kept < energy - 1e-6).sum()) + 1
        b = result.adapter.modules[module.name].b.value
        assert b.shape[1] == result.report.rank
        assert b[:, module.rank :].abs().sum() == 0
        assert 1 - module.residual**2 >= energy - 2e-6
    assert (
        max(m.rank for m in result.report.modules)
        == result.report.rank
        == result.adapter.config["r"]
    )
    capped = gm.extract(base, tuned, energy=energy, max_rank=2)
    assert capped.report.rank == min(2, result.report.rank)


def test_peft_gets_the_tuned_model_back(llama, gpt2, tmp_path):
    """At full rank. In GPT-2 weights are kept as (in, out), and some are square."""
    for name, model in (("llama", llama), ("gpt2", gpt2)):
        base, tuned = (
            save_base(model, tmp_path / name / "base"),
            save_tuned(model, tmp_path / name / "tuned"),
        )
        gm.extract(base, tuned, rank=24, out=tmp_path / name / "out")
        expected = forward(type(model).from_pretrained(tuned))
        assert relative(forward(model), expected) > 0.1
        assert relative(forward(model, tmp_path / name / "out"), expected) < 1e-5


def test_what_no_adapter_holds_is_told(llama, tmp_path):
    base = save_base(llama, tmp_path / "base")
    tuned = save_tuned(llama, tmp_path / "tuned", also=("embed_tokens", "norm"))
    report = gm.extract(base, tuned, rank=24).report
    before, after = stored(base), stored(tuned)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    adapted = {f"{module.name}.weight" for module in report.modules}
    assert report.left_out.keys() == changed - adapted
    assert "model.embed_tokens.weight" in report.left_out
    for key, norm in report.left_out.items():
        assert norm == pytest.approx(float((after[key] - before[key]).norm()), rel=1e-5)
    energy = {key: float((after[key] - before[key]).square().sum()) for key in changed}
    expected = sum(energy[key] for key in adapted) / sum(energy.values())
    assert report.energy_kept == pytest.approx(expected, rel=1e-4)


def test_chosen_modules_and_the_name_of_the_base(llama, tmp_path):
    base, tuned = save_base(llama, tmp_path / "base"), save_tuned(llama, tmp_path / "tuned")
    adapter = gm.extract(
        base, tuned, rank=2, modules=["q_proj", "k_proj"], base_model="org/base", dtype="bf16"
    ).adapter
    assert {name.rpartition(".")[2] for name in adapter.modules} == {"q_proj", "k_proj"}
    assert adapter.config["base_model_name_or_path"] == "org/base"
    assert adapter.dtype == torch.bfloat16


def test_equal_inputs_give_equal_bytes(llama, tmp_path):
    base, tuned = save_base(llama, tmp_path / "base"), save_tuned(llama, tmp_path / "tuned")
    for name in ("one", "two"):
        gm.extract(base, tuned, rank=2, out=tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_mistakes_write_nothing(llama, gpt2, tmp_path):
    base, tuned = save_base(llama, tmp_path / "base"), save_tuned(llama, tmp_path / "tuned")
    other = save_base(gpt2, tmp_path / "gpt2")
    broken = save_base(llama, tmp_path / "nan")
    with torch.no_grad():
        spoilt = copy.deepcopy(llama)
        spoilt.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
        save_base(spoilt, broken)
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments, options, message in (
        ((base, tuned), {}, r"give --rank or --energy"),
        ((base, tuned), {"rank": 0}, r"rank must be a positive integer, got 0"),
        ((base, tuned), {"energy": 1.5}, r"energy must be in \(0, 1\], got 1\.5"),
        ((base, tuned), {"energy": 0.5, "rank": 2}, r"rank cannot be combined"),
        ((base, base), {"rank": 2}, r"do not differ in any of these layers"),
        (
            (base, other),
            {"rank": 2},
            r"down_proj\.weight is \(24, 40\) float32 in .*base and is missing in .*gpt2",
        ),
        (
            (base, tuned),
            {"rank": 2, "modules": ["nope"]},
            r"found no linear layers to take",
        ),
        ((base, broken), {"rank": 2}, r"nan.*up_proj\.weight has NaN or Inf"),
        ((base, tuned), {"rank": 2, "dtype": "int4"}, r"dtype must be one of .*, got 'int4'"),
    ):
        with pytest.raises(gm.GamMergeError, match=message):
            gm.extract(*arguments, **options, out=tmp_path / "out")
    with pytest.raises(gm.GamMergeError, match=r"tuned: is a source"):
        gm.extract(base, tuned, rank=2, out=tuned, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_command(llama, tmp_path):
    save_base(llama, tmp_path / "base")
    save_tuned(llama, tmp_path / "tuned", also=("norm",))
    done = run(
        ["extract", "base", "tuned", "-o", "out", "--rank", "4", "--dtype", "bf16", "-v"], tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("extract: 14 modules of tuned -> rank 4\n")
    assert (
        "left out: 5 other tensors that changed (first model.layers.0.input_layernorm.weight)"
        in done.stdout
    )
    report = json.loads((tmp_path / "out" / "extract_report.json").read_text())
    assert f"residual: {100 * report['residual']:.1f} %" in done.stdout
    options = ["-o", "out", "--energy", "0.5", "--modules", "v_proj"]
    again = run(["extract", "base", "tuned", *options], tmp_path)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    again = run(
        [
            "extract",
            "base",
            "tuned",
            "-o",
            "out",
            "--energy",
            ".5",
            "--modules",
            "v_proj",
            "--force",
            "--json",
        ],
        tmp_path,
    )
    assert len(json.loads(again.stdout)["modules"]) == 2
    assert gm.load(tmp_path / "out").modules.keys() == {
        f"model.layers.{i}.self_attn.v_proj" for i in range(2)
    }
