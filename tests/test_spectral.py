"""Spectral methods against dense float64, and how they hang together."""

from typing import Any

import dense_methods as oracle
import pytest
import torch
from catalogue import PROBLEMS, full, merged, related
from helpers import adapter, delta, relative, stack
from strategies import Problem

import gam_merge as gm

FIRST = PROBLEMS["three"]
EVERY = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


@EVERY
@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsvm", "np_lora"])
@pytest.mark.parametrize("uniform", [True, False], ids=["ones", "weights"])
def test_equals_the_equations(problem: Problem, method: str, uniform: bool) -> None:
    weights = [1.0] * len(problem.pairs) if uniform else list(problem.weights)
    expected = getattr(oracle, method)(problem.deltas, weights)
    assert relative(merged(problem, method, weights=weights), expected) < 1e-9


@EVERY
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_iso_cts_at_any_fraction(problem: Problem, fraction: float) -> None:
    expected = oracle.iso_cts(problem.deltas, problem.weights, fraction)
    assert relative(merged(problem, "iso_cts", fraction=fraction), expected) < 1e-9


@pytest.mark.parametrize("name", ["two", "three", "mixed ranks", "apart", "close"])
@pytest.mark.parametrize("own", [0, 1])
def test_iso_cts_at_the_rank_of_one_adapter(name: str, own: int) -> None:
    problem = PROBLEMS[name]
    expected = oracle.iso_cts_r(problem.deltas, problem.weights, own)
    assert relative(merged(problem, "iso_cts_r", own=own), expected) < 1e-9


def test_iso_cts_at_the_rank_of_one_adapter_refuses_more_directions_than_it_has() -> None:
    with pytest.raises(gm.GamMergeError, match="module w has rank 3: too few directions for 1 of"):
        merged(PROBLEMS["full"], "iso_cts_r")


@pytest.mark.parametrize(
    ("count", "rank", "own"), [(5, 4, 1), (4, 8, 2), (3, 8, 2), (2, 16, 4), (4, 16, 3)]
)
def test_iso_cts_rounds_as_the_official_code(count: int, rank: int, own: int) -> None:
    """Rounding down instead would leave 5 adapters of rank 4 without any direction of their own."""
    shape = (count * rank + 2, count * rank + 1)
    problem = related(seed=5, count=count, shape=shape, ranks=(rank,), shared=0.3)
    expected = oracle.common_and_own(problem.deltas, problem.weights, count * rank, own)
    assert relative(merged(problem, "iso_cts"), expected) < 1e-9


@EVERY
@pytest.mark.parametrize("mu", [0.0, 0.5, 1e6])
@pytest.mark.parametrize("anchor", [0, 1])
def test_np_lora_keeps_its_anchor(problem: Problem, mu: float, anchor: int) -> None:
    expected = oracle.np_lora(problem.deltas, problem.weights, mu, anchor)
    result = gm.merge(
        problem.adapters,
        method="np_lora",
        weights=problem.weights,
        rank=full(problem),
        anchor=anchor,
        params={"mu": mu},
    )
    assert relative(delta(result.adapter), expected) < 1e-9


def test_np_lora_without_the_anchor_is_the_sum() -> None:
    """Where the anchor lacks a module, there is nothing to keep the others off."""
    pairs = [({"v": pair} | ({"w": pair} if i else {})) for i, pair in enumerate(FIRST.pairs)]
    adapters = [adapter(factors, source=str(i)) for i, factors in enumerate(pairs)]
    result = gm.merge(adapters, method="np_lora", rank=full(FIRST))
    assert relative(delta(result.adapter, "w"), sum(FIRST.deltas[1:])) < 1e-9


@EVERY
@pytest.mark.parametrize(
    ("p", "sides"), [(0.5, {}), (-0.25, {}), (-0.5, {"p_u": 0.0}), (1.0, {"p_v": -1.0})]
)
@pytest.mark.parametrize("q", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("floor", [True, False])
def test_consensus_equals_the_equations(
    problem: Problem, p: float, sides: dict[str, float], q: float, floor: bool
) -> None:
    exponents = {"p_u": p, "p_v": p, **sides}
    expected = oracle.consensus(problem.deltas, problem.weights, **exponents, q=q, floor=floor)
    assert relative(merged(problem, "consensus", p=p, q=q, floor=floor, **sides), expected) < 1e-9


@pytest.mark.parametrize("name", ["two", "three", "mixed ranks", "apart", "close"])
def test_consensus_without_floor_at_minus_a_half_is_tsvm(name: str) -> None:
    problem = PROBLEMS[name]
    count = len(problem.pairs)
    equal, ones = [1 / count] * count, [1.0] * count
    found = merged(problem, "consensus", weights=equal, p=-0.5, floor=False)
    assert relative(found, merged(problem, "tsvm", weights=ones)) < 1e-9


@EVERY
def test_consensus_with_a_flat_spectrum_is_iso_c(problem: Problem) -> None:
    count = len(problem.pairs)
    found = merged(problem, "consensus", weights=[1 / count] * count, p=0, q=0)
    assert relative(count * found, merged(problem, "iso_c", weights=[1.0] * count)) < 1e-9


@EVERY
def test_consensus_of_exponent_zero_is_the_mean(problem: Problem) -> None:
    assert relative(merged(problem, "consensus", p=0), merged(problem, "mean")) < 1e-9


@pytest.mark.parametrize("p", [-1.0, -0.25, 0.5])
def test_consensus_is_continuous_at_equal_deltas(p: float) -> None:
    """TSV-M is not: it takes nearly equal directions apart however close they are."""
    base = related(seed=11, count=3, shared=1.0)
    near = related(seed=11, count=3, shared=1 - 1e-6)
    assert relative(merged(near, "consensus", p=p), merged(base, "consensus", p=p)) < 1e-4
    assert relative(merged(near, "tsvm"), merged(base, "tsvm")) > 0.1


@pytest.mark.parametrize("p", [-1.0, -0.25, 0.5])
def test_consensus_amplifies_no_more_than_it_says(p: float) -> None:
    for problem in PROBLEMS.values():
        bound = len(problem.pairs) ** (2 * max(-p, 0))
        mean, found = merged(problem, "mean"), merged(problem, "consensus", p=p)
        assert torch.linalg.matrix_norm(found, 2) <= bound * torch.linalg.matrix_norm(mean, 2) * (
            1 + 1e-9
        )


def test_spectra_are_flat_over_the_sum_of_ranks() -> None:
    problem = related(seed=8, count=3, shape=(20, 18), ranks=(3,))
    for method in ("iso_c", "iso_cts"):
        s = torch.linalg.svdvals(merged(problem, method))
        assert torch.allclose(s[:9], s[0], rtol=1e-9)
        assert s[9] < 1e-12


@EVERY
@pytest.mark.parametrize(
    "options", [{"ridge": 0.01}, {"ridge": 0.1}, {"time": 300.0}, {"time": 3.0}]
)
@pytest.mark.parametrize("uniform", [True, False], ids=["ones", "weights"])
def test_wudi(problem: Problem, options: dict[str, float], uniform: bool) -> None:
    weights = [1.0] * len(problem.pairs) if uniform else list(problem.weights)
    expected = oracle.wudi(problem.deltas, weights, **options)
    kind = "flow" if "time" in options else "ridge"
    assert (
        relative(merged(problem, "wudi", weights=weights, filter=kind, **options), expected) < 1e-9
    )


def test_wudi_without_ridge_agrees_with_every_adapter_where_it_acts() -> None:
    problem = related(seed=9, count=3, shape=(20, 18), ranks=(3,), shared=0.3)
    found = merged(problem, "wudi", ridge=0)
    for x in problem.deltas:
        assert relative(found @ x.T, x @ x.T) < 1e-9


@EVERY
@pytest.mark.parametrize(
    "options", [{}, {"spectrum": "linear"}, {"spectrum": "linear", "ratio": 2.0}, {"keep": 0.2}]
)
def test_dc_merge(problem: Problem, options: dict[str, Any]) -> None:
    dense = {"linear": options.get("spectrum") == "linear", "ratio": options.get("ratio", 5.0)}
    expected = oracle.dc_merge(problem.deltas, problem.weights, **dense, keep=options.get("keep"))
    assert relative(merged(problem, "dc_merge", **options), expected) < 1e-9


@pytest.mark.parametrize("name", ["two", "three", "close"])
def test_frechet(name: str) -> None:
    problem = PROBLEMS[name]
    expected = oracle.frechet(problem.deltas, problem.weights)
    assert relative(merged(problem, "frechet", iterations=2000), expected) < 1e-8


def test_frechet_refuses_unlike_ranks() -> None:
    with pytest.raises(
        gm.GamMergeError, match=r"module w has deltas of numerical ranks \(4, 2, 1, 3\)"
    ):
        merged(PROBLEMS["mixed ranks"], "frechet")


@EVERY
@pytest.mark.parametrize("eta", [0.0, 0.4, 0.8, 1.0])
def test_star(problem: Problem, eta: float) -> None:
    expected = oracle.star(problem.deltas, problem.weights, eta)
    assert relative(merged(problem, "star", eta=eta), expected) < 1e-9


@EVERY
@pytest.mark.parametrize(("fraction", "c"), [(0.04, 0.1), (0.3, 0.1), (0.5, 0.7), (0.0, 0.5)])
def test_cart(problem: Problem, fraction: float, c: float) -> None:
    expected = oracle.cart(problem.deltas, problem.weights, fraction, c)
    assert relative(merged(problem, "cart", fraction=fraction, c=c), expected) < 1e-9


@pytest.mark.parametrize("name", ["two", "three", "apart", "close"])
def test_actmat(name: str) -> None:
    problem = PROBLEMS[name]
    assert (
        relative(merged(problem, "actmat"), oracle.actmat(problem.deltas, problem.weights)) < 1e-7
    )


@pytest.mark.parametrize("name", ["two", "three", "mixed ranks", "close", "full"])
@pytest.mark.parametrize(("common", "own"), [(4, 16), (2, 16), (3, 1), (1, 2), (0, 16)])
def test_ct_merging(name: str, common: int, own: int) -> None:
    problem = PROBLEMS[name]
    expected = oracle.ct_merging(problem.deltas, problem.weights, common, own)
    assert relative(merged(problem, "ct_merging", common=common, own=own), expected) < 1e-9


def test_ct_merging_takes_no_arbitrary_direction_as_common() -> None:
    """Equal adapters share every direction alike: four of five would be a choice of the solver."""
    problem = related(seed=6, count=1, shape=(14, 11), ranks=(5,))
    b, a = problem.pairs[0]
    single = gm.merge(problem.adapters, method="ct_merging", rank=11).adapter
    turned = torch.linalg.qr(torch.randn(14, 14, dtype=torch.float64))[0]
    result = gm.merge(stack([(turned @ b, a)] * 3), method="ct_merging", rank=11).adapter
    assert relative(turned.T @ delta(result), delta(single)) < 1e-9
    assert relative(delta(single), oracle.flat_rms(b @ a)) < 1e-9
