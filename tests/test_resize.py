"""An adapter at another rank, against the dense truncation of its deltas."""

import json
from typing import Any

import pytest
import torch
from helpers import relative
from real import forward, save_adapter
from test_cli import run

import gam_merge as gm


@pytest.fixture(scope="module")
def source(llama, tmp_path_factory):
    config: dict[str, Any] = {
        "r": 6,
        "lora_alpha": 9,
        "use_rslora": True,
        "rank_pattern": {"v_proj": 3},
    }
    return save_adapter(llama, tmp_path_factory.mktemp("resize") / "source", **config)


def truncated(delta: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vt[:rank]


@pytest.mark.parametrize("rank", [1, 4, 6])
def test_rank_is_the_best_of_that_rank(source, rank, tmp_path):
    result = gm.resize(source, rank=rank, out=tmp_path / "out")
    before, after = gm.load(source), gm.load(tmp_path / "out")
    kept = total = 0.0
    for name, module in before.modules.items():
        expected = truncated(module.delta(), rank)
        assert relative(after.modules[name].delta(), expected) < 1e-6
        assert after.modules[name].rank == rank
        kept, total = (
            kept + float(expected.square().sum()),
            total + float(module.delta().square().sum()),
        )
    assert result.report.energy_kept == pytest.approx(kept / total, rel=1e-5)


def test_a_higher_rank_changes_nothing(llama, source, tmp_path):
    gm.resize(source, rank=16, out=tmp_path / "out")
    assert gm.load(tmp_path / "out").rank == 16
    assert relative(forward(llama, tmp_path / "out"), forward(llama, source)) < 1e-6


def test_energy(source):
    before = gm.load(source).modules
    shares = {
        name: torch.linalg.svdvals(module.delta()).square() for name, module in before.items()
    }
    needed = {name: int((s.cumsum(0) / s.sum() < 0.8).sum()) + 1 for name, s in shares.items()}
    each = gm.resize(source, energy=0.8, per_module_rank=True).adapter.modules
    assert {name: module.rank for name, module in each.items()} == needed
    assert len(set(needed.values())) > 1
    assert gm.resize(source, energy=0.8).adapter.rank == max(needed.values())
    assert gm.resize(source, energy=0.8, max_rank=2).adapter.rank == 2
    assert gm.resize(source, max_rank=4).adapter.rank == 4


def test_no_size_is_a_mistake(source):
    with pytest.raises(gm.GamMergeError, match="give one of --rank"):
        gm.resize(source)


def test_command(source, tmp_path):
    done = run(["resize", source, "-o", "out", "--rank", "2", "--json"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rank"] == 2
    assert gm.load(tmp_path / "out").rank == 2
