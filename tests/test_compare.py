"""Every figure of a comparison equals its definition on dense float64 matrices, and means what it says."""

import json

import dense
import helpers
import numpy as np
import pytest
import torch
from hypothesis import given
from strategies import Problem, generators, problems, well_posed
from torch import Tensor

import gam_merge as gm
from gam_merge._compare import _rows


def bases(delta: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the column and the row space."""
    k = dense.numerical_rank(delta)
    u, _, vt = torch.linalg.svd(delta)
    return u[:, :k], vt[:k].T


def close(value: object, expected: object) -> None:
    np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-8)


def check_pairs(problem: Problem) -> None:
    total = gm.compare(problem.adapters, weights=problem.weights).total
    for i, x in enumerate(problem.deltas):
        for j, y in enumerate(problem.deltas):
            (u_i, v_i), (u_j, v_j) = bases(x), bases(y)
            close(total.gram[i, j], (x * y).sum())
            close(total.cosines[i, j], (x * y).sum() / (x.norm() * y.norm()))
            close(total.overlaps_u[i, j], torch.linalg.svdvals(u_i.T @ u_j).square().mean())
            close(total.overlaps_v[i, j], torch.linalg.svdvals(v_i.T @ v_j).square().mean())
            close(total.commons[i, j], (u_j @ u_j.T @ x @ v_j @ v_j.T).norm() ** 2 / x.norm() ** 2)
    pairs = [(i, j) for i in range(len(problem.pairs)) for j in range(i)]
    close(total.cosine, np.mean([total.cosines[pair] for pair in pairs]))


def check_norms(problem: Problem) -> None:
    total = gm.compare(problem.adapters, weights=problem.weights).total
    close(total.mean_norm, dense.mean(problem.deltas, problem.weights).norm())
    close(total.gam_norm, dense.gam(problem.deltas, problem.weights).norm())


@given(problems(sizes=(2, 4)))
def test_pairs_equal_dense(problem: Problem):
    check_pairs(problem)


@given(problems(sizes=(2, 4)).filter(well_posed))
def test_norms_of_the_merges_equal_dense(problem: Problem):
    check_norms(problem)


@given(generators)
def test_float32_equals_dense(generator):
    """Well-conditioned factors in float32 take another route to their bases, with cores that are not diagonal."""
    pairs = tuple(helpers.random_factors(generator, 60, 50, r, torch.float32) for r in (4, 3, 4))
    problem = Problem(pairs, (0.5, 0.3, 0.2))
    check_pairs(problem)
    if well_posed(problem):
        check_norms(problem)


@given(problems(sizes=(2, 3)))
def test_angles_and_spectra_equal_dense(problem: Problem):
    (module,) = gm.compare(problem.adapters).modules
    for spectrum, delta in zip(module.spectra, problem.deltas, strict=True):
        close(spectrum, torch.linalg.svdvals(delta)[: len(spectrum)])
    for (i, j), cosines in module.cosines_u.items():
        close(
            cosines,
            torch.linalg.svdvals(bases(problem.deltas[i])[0].T @ bases(problem.deltas[j])[0]),
        )
    for (i, j), cosines in module.cosines_v.items():
        close(
            cosines,
            torch.linalg.svdvals(bases(problem.deltas[i])[1].T @ bases(problem.deltas[j])[1]),
        )


@given(problems(sizes=(2, 3)))
def test_signs_equal_dense_on_the_sampled_rows(problem: Problem):
    total = gm.compare(problem.adapters, seed=3).total
    rows = _rows(problem.deltas[0].shape[0], 3)
    for i, x in enumerate(problem.deltas):
        for j, y in enumerate(problem.deltas):
            close(total.sign_agreements[i, j], (x[rows].sign() == y[rows].sign()).double().mean())


def test_sampled_signs_come_close_to_all_signs():
    """16 of 400 rows of correlated deltas: the standard error over 16 rows is about 0.02."""
    generator = torch.Generator().manual_seed(0)
    b, a = helpers.random_factors(generator, 400, 30, 4)
    other = b + helpers.random_factors(generator, 400, 30, 4)[0]
    exact = ((b @ a).sign() == (other @ a).sign()).double().mean()
    found = gm.compare(helpers.stack([(b, a), (other, a)]))
    assert found.total.sign_agreement == pytest.approx(float(exact), abs=0.06)
    again = gm.compare(helpers.stack([(b, a), (other, a)]), seed=1)
    assert again.total.sign_agreement != found.total.sign_agreement


@pytest.mark.parametrize(("ranks", "shape"), [((4, 4), (40, 24)), ((2, 5), (30, 50))])
def test_chance_is_the_mean_over_random_subspaces(ranks, shape):
    """600 independent pairs; the mean must lie within four standard errors of the chance level."""
    generator = torch.Generator().manual_seed(1)
    pairs = [
        {f"w.{t}": helpers.random_factors(generator, *shape, r) for t in range(600)} for r in ranks
    ]
    found = gm.compare([helpers.adapter(factors) for factors in pairs]).measures
    for value, chance in (
        (found.overlap_u, found.chance_u),
        (found.overlap_v, found.chance_v),
        (found.common_energy, found.chance_common),
    ):
        error = value.std() / len(value) ** 0.5
        assert chance.mean() == pytest.approx(value.mean(), abs=4 * error)
        assert error < 0.1 * chance.mean()
    assert found.sum().overlap_u == pytest.approx(found.overlap_u.mean())


@given(generators)
def test_an_adapter_and_itself(generator):
    """In another gauge: overlap, cosine and common energy are one, and both merges keep the norm."""
    b, a = helpers.random_factors(generator, 20, 15, 3)
    gauge = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    total = gm.compare(helpers.stack([(b, a), (b @ gauge, torch.linalg.solve(gauge, a))])).total
    for value in (
        total.overlap_u,
        total.overlap_v,
        total.cosine,
        total.common_energy,
        total.gam_to_mean,
    ):
        close(value, 1.0)
    assert total.sign_agreement == 1.0
    close(total.mean_norm, (b @ a).norm())


def test_parts_add_up():
    """By layer, type and module: sums over parts are the whole, and every ratio of a part is that of its modules."""
    generator = torch.Generator().manual_seed(2)
    shapes = {
        f"layers.{i}.{kind}": (9, n, 2)
        for i in (0, 2, 10)
        for kind, n in (("attn.q", 7), ("mlp.up", 8))
    }
    factors = [
        {n: helpers.random_factors(generator, *shape) for n, shape in shapes.items()}
        for _ in range(3)
    ]
    del factors[2]["layers.2.attn.q"]
    found = gm.compare([helpers.adapter(pairs) for pairs in factors])
    assert list(found.by("layer")) == ["layers.0", "layers.2", "layers.10"]
    assert list(found.by("type")) == ["attn.q", "mlp.up"]
    assert list(found.by("module")) == list(shapes)
    for by in ("layer", "type", "module"):
        parts = found.by(by).values()
        close(sum(part.gram for part in parts), found.total.gram)
        close(sum(part.gam_energy for part in parts), found.total.gam_energy)
    one = gm.compare(helpers.stack([pairs["layers.0.mlp.up"] for pairs in factors]))
    close(found.by("module")["layers.0.mlp.up"].overlap_u, one.total.overlap_u)


def test_missing_and_zero_modules_count_as_a_merge_counts_them():
    generator = torch.Generator().manual_seed(3)
    first = {
        name: helpers.random_factors(generator, 8, 6, 2)
        for name in ("both", "zero", "alone", "nowhere")
    }
    second = {
        name: helpers.random_factors(generator, 8, 6, 2) for name in ("both", "zero", "nowhere")
    }
    for factors, name in ((second, "zero"), (first, "nowhere"), (second, "nowhere")):
        factors[name] = (torch.zeros_like(factors[name][0]), factors[name][1])
    adapters = [helpers.adapter(first), helpers.adapter(second)]
    found = gm.compare(adapters, weights=[0.75, 0.25])
    parts = found.by("module")
    for method, norm in (("mean", found.total.mean_norm), ("gam", found.total.gam_norm)):
        merged = gm.merge(adapters, weights=[0.75, 0.25], method=method, rank=4)
        close(norm, merged.report.merged_norm)
    assert [module.ranks for module in found.modules] == [(2, 0), (2, 2), (0, 0), (2, 0)]
    for name in ("zero", "alone", "nowhere"):
        assert np.isnan(parts[name].overlap_u)
        assert np.isnan(parts[name].cosines[0, 1])
    close(found.total.overlap_u, parts["both"].overlap_u)
    third = gm.compare([*adapters, adapters[0]]).by("module")["alone"]
    close(third.cosine, 1.0)  # of the two that have it


def test_json_is_strict_and_whole():
    b, a = helpers.random_factors(torch.Generator().manual_seed(4), 8, 6, 2)
    adapters = helpers.stack([(b, a), (0 * b, a)])
    data = json.loads(json.dumps(gm.compare(adapters).to_dict(), allow_nan=False))
    assert {"overlap_u", "overlap_v", "chance_u", "chance_v", "cosine"} <= data.keys()
    assert data["overlap_u"] is None  # they change no module together
    assert "No module" in data["verdict"]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two(count):
    generator = torch.Generator().manual_seed(5)
    adapters = helpers.stack([helpers.random_factors(generator, 8, 6, 2)] * count)
    with pytest.raises(gm.GamMergeError):
        gm.compare(adapters)


@pytest.mark.parametrize(
    ("shared", "method", "words"),
    [(0.0, "consensus", "Separate initialisations"), (1.0, "gam", "Same initialisation")],
)
def test_words_and_advice_follow_the_overlap(shared, method, words):
    """Adapters with common factors, or with none."""
    generator = torch.Generator().manual_seed(6)
    common, *own = (helpers.random_factors(generator, 90, 80, 3) for _ in range(4))
    pairs = [
        tuple(shared * x + (1 - 0.9 * shared) * y for x, y in zip(common, pair, strict=True))
        for pair in own
    ]
    found = gm.compare(helpers.stack(pairs))
    assert found.verdict.startswith(words)
    assert ("of their norm" in found.verdict) == (method == "consensus")
    advice = found.recommendation
    assert advice.method == method
    taken = gm.merge(helpers.stack(pairs)).report
    assert (taken.method, taken.choice.params) == (advice.method, advice.params)
    assert advice.reason == taken.choice.reason


def test_verdict_names_what_a_mean_suffers_from():
    generator = torch.Generator().manual_seed(7)
    b, a = helpers.random_factors(generator, 20, 15, 3)
    assert "oppose each other" in gm.compare(helpers.stack([(b, a), (-b, a)])).verdict
    assert "factor of 5.0" in gm.compare(helpers.stack([(b, a), (5 * b, a)])).verdict
