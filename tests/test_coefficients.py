"""Means on the sphere, Model Stock and the median, found from inner products: against the same on all entries."""

import dense_methods as oracle
import pytest
import torch
from catalogue import PROBLEMS, merged, related
from helpers import adapter, delta, random_factors, relative, stack
from strategies import Problem

import gam_merge as gm
from gam_merge import GamMergeError

MORE = {name: problem for name, problem in PROBLEMS.items() if name != "two"}
EVERY = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


@EVERY
def test_multislerp(problem: Problem) -> None:
    assert (
        relative(merged(problem, "multislerp"), oracle.karcher(problem.deltas, problem.weights, 1))
        < 1e-9
    )


@EVERY
def test_karcher(problem: Problem) -> None:
    expected = oracle.karcher(problem.deltas, problem.weights, 300)
    assert relative(merged(problem, "karcher", tolerance=1e-14, iterations=1000), expected) < 1e-9


@EVERY
def test_model_stock(problem: Problem) -> None:
    assert (
        relative(
            merged(problem, "model_stock"), oracle.model_stock(problem.deltas, problem.weights)
        )
        < 1e-9
    )


@pytest.mark.parametrize("problem", MORE.values(), ids=MORE)
def test_geometric_median(problem: Problem) -> None:
    expected = oracle.geometric_median(problem.deltas, problem.weights)
    assert (
        relative(merged(problem, "geometric_median", tolerance=1e-14, iterations=5000), expected)
        < 1e-9
    )


@pytest.mark.parametrize("shared", [0.0, 0.6, 0.99999])
def test_slerp(shared: float) -> None:
    problem = related(seed=21, count=2, shared=shared, ranks=(3, 2))
    expected = oracle.slerp(problem.deltas, problem.weights)
    assert relative(merged(problem, "slerp"), expected) < 1e-9
    assert relative(merged(problem, "nuslerp"), expected) < 1e-9


def test_nuslerp_by_rows_and_columns() -> None:
    problem = related(seed=22, count=2, ranks=(3, 2))
    rows = oracle.slerp_rows(problem.deltas, problem.weights)
    assert relative(merged(problem, "nuslerp", each="row"), rows) < 1e-9
    columns = oracle.slerp_rows([d.T for d in problem.deltas], problem.weights).T
    assert relative(merged(problem, "nuslerp", each="column"), columns) < 1e-9


def test_rows_that_are_zero_stay_so() -> None:
    problem = related(seed=23, count=2)
    pairs = [(b.clone(), a) for b, a in problem.pairs]
    pairs[0][0][3] = pairs[1][0][3] = pairs[1][0][5] = 0.0
    found = delta(gm.merge(stack(pairs), method="nuslerp", params={"each": "row"}, rank=11).adapter)
    assert not found[3].any()
    assert relative(found[5], 0.5 * pairs[0][0][5] @ pairs[0][1]) < 1e-9


@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
@pytest.mark.parametrize("count", [1, 3])
def test_slerp_takes_two(method: str, count: int) -> None:
    with pytest.raises(GamMergeError, match=rf"{method} takes 2 adapters, got {count}"):
        gm.merge(related(count=count).adapters, method=method)


def test_outliers_do_not_move_the_median() -> None:
    problem = related(seed=24, count=5, shared=0.9)
    loud = (100 * problem.pairs[0][0], -problem.pairs[0][1])
    found = delta(
        gm.merge(stack([*problem.pairs, loud]), method="geometric_median", rank=11).adapter
    )
    mean = sum(problem.deltas) / 5
    assert relative(found, mean) < 0.2
    assert relative(sum([*problem.deltas, loud[0] @ loud[1]]) / 6, mean) > 10


def test_warnings() -> None:
    apart = PROBLEMS["apart"].adapters
    assert any(
        "nearly orthogonal" in text
        for text in gm.merge(apart, method="model_stock").report.warnings
    )
    pair = PROBLEMS["three"].pairs[0]
    opposed = stack([pair, (-pair[0], pair[1])])
    result = gm.merge(opposed, method="karcher")
    assert any("cancel out" in text for text in result.report.warnings)
    assert delta(result.adapter).isfinite().all()
    slow = gm.merge(PROBLEMS["three"].adapters, method="karcher", params={"iterations": 1}).report
    assert any("did not converge" in text for text in slow.warnings)


@pytest.mark.parametrize(
    "method", ["karcher", "multislerp", "model_stock", "geometric_median", "slerp"]
)
def test_global_scope_takes_all_modules_as_one_vector(method: str) -> None:
    """As if the modules lay side by side in one matrix: the same coefficients everywhere, missing is zero."""
    count = 2 if method == "slerp" else 3
    generator = torch.Generator().manual_seed(25)
    common = {name: random_factors(generator, 8, 7, 2) for name in "xyz"}
    factors = []
    for i in range(count):
        own = {name: random_factors(generator, 8, 7, 2) for name in common}
        factors.append(
            {n: (0.7 * common[n][0] + own[n][0], common[n][1]) for n in "xyz" if (n, i) != ("z", 1)}
        )
    adapters = [adapter(f, source=str(i)) for i, f in enumerate(factors)]
    weights = [0.5, 0.3, 0.2][:count]
    weights = [w / sum(weights) for w in weights]
    wide = [
        torch.cat([f[n][0] @ f[n][1] if n in f else torch.zeros(8, 7).double() for n in "xyz"], 1)
        for f in factors
    ]
    oracles = {
        "karcher": lambda d, w: oracle.karcher(d, w, 300),
        "multislerp": lambda d, w: oracle.karcher(d, w, 1),
    }
    expected = oracles.get(method, getattr(oracle, method, None))(wide, weights)
    result = gm.merge(adapters, method=method, weights=weights, rank=7, params={"scope": "global"})
    found = torch.cat([delta(result.adapter, n) for n in "xyz"], 1)
    assert relative(found, expected) < 1e-7


def test_global_scope_takes_one_weight_an_adapter() -> None:
    generator = torch.Generator().manual_seed(26)
    factors = [
        {f"layers.{i}.q": random_factors(generator, 8, 7, 2) for i in range(2)} for _ in range(2)
    ]
    adapters = [adapter(f, source=str(i)) for i, f in enumerate(factors)]
    options = {"method": "karcher", "params": {"scope": "global"}}
    assert gm.merge(adapters, weights=[0.2, 0.8], **options).adapter.modules
    with pytest.raises(GamMergeError, match="karcher with scope=global"):
        gm.merge(adapters, weights=[0.2, [0.8, 0.6]], **options)
