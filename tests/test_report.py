"""What a merge says of itself equals what dense matrices say."""

import json

import dense
import helpers
import numpy as np
import pytest
import torch
from hypothesis import given
from strategies import Problem, problems
from torch import Tensor

import gam_merge as gm
from gam_merge._write.adapter import as_json


def projected(merged: Tensor, delta: Tensor) -> Tensor:
    """The matrix between the column and row spaces of another."""
    k = dense.numerical_rank(delta)
    u, _, vt = torch.linalg.svd(delta)
    return u[:, :k] @ u[:, :k].T @ merged @ vt[:k].T @ vt[:k]


@pytest.mark.parametrize("method", ["gam", "mean"])
@given(problem=problems(sizes=(1, 4)))
def test_figures_equal_dense(method: str, problem: Problem):
    result = gm.merge(problem.adapters, method=method, weights=problem.weights, rank=30)
    (module,) = result.report.modules
    merged = helpers.delta(result.adapter)
    mean = sum(
        w * float(delta.norm()) for w, delta in zip(problem.weights, problem.deltas, strict=True)
    )
    close(module.norm_ratio, float(merged.norm()) / mean)
    for i, delta in enumerate(problem.deltas):
        share = float((merged * delta).sum() / delta.norm() ** 2)
        within = projected(merged, delta)
        close(module.survival[i], share)
        close(result.report.survival[i], share)
        cross = float((within - share * delta).norm() ** 2 / within.norm() ** 2)
        close(module.cross_talk[i], cross)
        close(result.report.cross_talk[i], cross)


@pytest.mark.parametrize(
    "joint", [0, 1 << 20], ids=["measured on the factors", "from inner products"]
)
@pytest.mark.parametrize("method", ["gam", "mean", "ties"])
@pytest.mark.parametrize("rank", [4, 12])
def test_figures_in_float32(method: str, rank: int, joint: int, monkeypatch: pytest.MonkeyPatch):
    """Both ways to them, for results that are cut and for those that are not."""
    monkeypatch.setattr(
        "gam_merge._run.reader._JOINT", joint
    )  # columns times adapters up to which Gram matrices are formed
    generator = torch.Generator().manual_seed(2)
    adapters = helpers.stack(
        [helpers.random_factors(generator, 60, 50, 4, torch.float32) for _ in range(3)]
    )
    result = gm.merge(adapters, method=method, rank=rank)
    (module,), merged = result.report.modules, helpers.delta(result.adapter)
    assert not module.fell_back
    close(module.merged_norm, float(merged.norm()), 1e-6)
    for i, adapter in enumerate(adapters):
        delta = helpers.delta(adapter)
        close(module.inners[i], float((merged * delta).sum()), 1e-6)
        close(module.responses[i], float(projected(merged, delta).norm() ** 2), 1e-6)


def close(value: float, expected: float, tolerance: float = 1e-7) -> None:
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=1e-2 * tolerance)


def test_cross_talk_of_what_does_not_meet_and_of_what_is_alike():
    generator = torch.Generator().manual_seed(0)
    b, a = helpers.random_factors(generator, 12, 10, 3)
    apart = [torch.zeros(12, 10).double() for _ in range(2)]
    apart[0][:3, :3], apart[1][5:8, 5:8] = (
        torch.randn(3, 3, generator=generator) for _ in range(2)
    )
    pairs = [(x, torch.eye(10).double()) for x in apart]
    assert gm.merge(helpers.stack(pairs), method="mean", rank=6).report.cross_talk == pytest.approx(
        (0, 0), abs=1e-12
    )
    assert gm.merge(helpers.stack([(b, a), (b, a)])).report.cross_talk == pytest.approx(
        (0, 0), abs=1e-12
    )


def test_the_modules_that_lost_most_come_first():
    """Adapters that agree less and less, from module to module."""
    generator = torch.Generator().manual_seed(1)
    names = [f"layers.{i}.q" for i in range(14)]
    common, own = ([helpers.random_factors(generator, 30, 20, 2) for _ in names] for _ in range(2))
    second = {
        n: tuple(x + i / 4 * y for x, y in zip(c, o, strict=True))
        for i, (n, c, o) in each(names, common, own)
    }
    first = dict(zip(names, common, strict=True))
    report = gm.merge([helpers.adapter(first), helpers.adapter(second)]).report
    worst = report.worst()
    assert len(worst) == 10
    assert names[0] not in {module.name for module in worst}
    totals = [sum(module.inners) / sum(n**2 for n in module.norms) for module in worst]
    assert totals == sorted(totals)
    json.dumps(report.to_dict(), allow_nan=False)


def each(names: list[str], *columns: list) -> enumerate:
    return enumerate(zip(names, *columns, strict=True))


def test_fallbacks_are_named():
    """Columns that are nearly parallel: float32 products would lose their difference. In float64 nothing falls back."""
    generator = torch.Generator().manual_seed(2)
    good = helpers.random_factors(generator, 40, 30, 2)
    b, a = helpers.random_factors(generator, 40, 30, 2)
    b[:, 1] = b[:, 0] + 1e-5 * b[:, 1]
    for dtype, expected in ((torch.float32, ("bad",)), (torch.float64, ())):
        factors = {
            name: tuple(x.to(dtype) for x in pair)
            for name, pair in (("good", good), ("bad", (b, a)))
        }
        assert gm.merge([helpers.adapter(factors)] * 2).report.fallbacks == expected


def test_the_report_of_all_experts_stays_small():
    """18,432 modules of four adapters below 10 MB, and each figure to six digits."""
    figure = 0.12345678901
    modules: list[gm.ModuleReport] = []
    for layer in range(48):
        for expert in range(128):
            for name in ("gate", "up", "down"):
                module = gm.ModuleReport(
                    name=f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj",
                    shape=(2048, 768),
                    ranks=(16,) * 4,
                    norms=(figure,) * 4,
                    inners=(figure,) * 4,
                    responses=(figure,) * 4,
                    mean_norm=figure,
                    merged_rank=16,
                    merged_norm=figure,
                    energy_kept=figure,
                )
                modules.append(module)
    report = gm.MergeReport("gam", ("a", "b", "c", "d"), (0.25,) * 4, 0, 16, "bf16", tuple(modules))
    text = as_json(report.to_dict())
    assert len(text) < 10e6
    first = json.loads(text)["modules"][0]
    assert first["norms"] == [0.123457] * 4
    assert first["survival"] == [float(f"{1 / figure:.6g}")] * 4
