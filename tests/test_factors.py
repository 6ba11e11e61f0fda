"""Rules on the factors as they were read, against dense float64."""

from typing import Any

import dense_methods as oracle
import pytest
import torch
from catalogue import PROBLEMS, full, merged, related
from dense import numerical_rank
from helpers import adapter, delta, relative
from strategies import Problem
from torch import Tensor

import gam_merge as gm
from gam_merge._common.random import generator

EQUAL_RANKS = pytest.mark.parametrize("name", ["two", "three", "apart", "close", "full"])
Pair = tuple[Tensor, Tensor]


@EQUAL_RANKS
@pytest.mark.parametrize(
    "options", [{}, {"density": 0.5, "quantile": 0.4}, {"density": 1.0, "gain": 1.0}]
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_robustmerge(name: str, options: dict[str, float], sign: float) -> None:
    problem = PROBLEMS[name]
    weights = [sign * problem.weights[0], *problem.weights[1:]]
    bs, as_ = zip(*problem.pairs, strict=True)
    expected = oracle.robustmerge(bs, as_, weights, **options)
    assert relative(merged(problem, "robustmerge", weights=weights, **options), expected) < 1e-9


def test_robustmerge_splits_the_scale_between_the_factors() -> None:
    problem = PROBLEMS["three"]
    adapters = [adapter({"w": x}, scale=4.0, source=str(i)) for i, x in enumerate(problem.pairs)]
    bs, as_ = zip(*((2 * b, 2 * a) for b, a in problem.pairs), strict=True)
    result = gm.merge(adapters, method="robustmerge").adapter
    assert relative(delta(result), oracle.robustmerge(bs, as_, [1.0] * 3)) < 1e-9


def test_robustmerge_without_the_largest_entries_of_a_rank_is_finite() -> None:
    """A row of A that loses all its entries has no scale of its own."""
    pairs = [(b, torch.cat([1e-6 * a[:1], a[1:]])) for b, a in PROBLEMS["three"].pairs]
    problem = Problem(tuple(pairs), PROBLEMS["three"].weights)
    bs, as_ = zip(*pairs, strict=True)
    found = merged(problem, "robustmerge")
    assert found.isfinite().all()
    assert relative(found, oracle.robustmerge(bs, as_, problem.weights)) < 1e-9


def test_factors_of_unlike_rank_are_refused_by_robustmerge() -> None:
    words = r"module w has ranks \(4, 2, 1, 3\); robustmerge adds factors and needs equal ranks"
    with pytest.raises(gm.GamMergeError, match=words):
        merged(PROBLEMS["mixed ranks"], "robustmerge")


def singular_units(pair: Pair) -> Pair:
    """Balanced singular pairs, with signs by which the entries of B add up to more than zero."""
    b, a = pair
    u, s, vt = torch.linalg.svd(b @ a, full_matrices=False)
    k = numerical_rank(b @ a)
    u, vt = u[:, :k] * s[:k].sqrt(), vt[:k] * s[:k, None].sqrt()
    sign = torch.where(u.sum(0) < 0, -1.0, 1.0)
    return u * sign, vt * sign[:, None]


def draws(ranks: list[int], k: int, restarts: int, seed: int = 0) -> Tensor:
    """(restarts, k, units)"""
    streams = [generator(seed, f"adapter-{i}#0", "w", "lego") for i in range(len(ranks))]
    units = [
        torch.rand(restarts, k, rank, generator=stream, dtype=torch.float64)
        for rank, stream in zip(ranks, streams, strict=True)
    ]
    return torch.cat(units, -1)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"factors": "read", "seed": 3},
        {"distance": "directions", "restarts": 1, "iterations": 3},
        {"k": 2, "output_scale": "units"},
        {"k": 5, "factors": "read", "distance": "directions"},
    ],
)
def test_lego(problem: Problem, options: dict[str, Any]) -> None:
    read = options.get("factors") == "read"
    pairs = list(problem.pairs) if read else list(map(singular_units, problem.pairs))
    ranks = [b.shape[1] for b, _ in pairs]
    k = min(options.get("k") or max(ranks), sum(ranks))
    expected = oracle.lego(
        pairs,
        problem.weights,
        draws(ranks, k, options.get("restarts", 10), options.get("seed", 0)),
        k,
        directions=options.get("distance") == "directions",
        iterations=options.get("iterations", 100),
    )
    count = sum(ranks) if options.get("output_scale") == "units" else max(ranks)
    found = merged(problem, "lego", **options)
    assert relative(found, (count / k) ** 0.5 * expected) < 1e-9


def test_lego_is_a_matter_of_its_seed() -> None:
    problem = related(seed=7, count=4, shape=(30, 28), ranks=(6,), shared=0.2)
    found = [merged(problem, "lego", seed=seed, restarts=1) for seed in (0, 1)]
    assert relative(found[0], found[1]) > 1e-3


def test_lego_keeps_every_unit_if_there_is_room() -> None:
    problem = PROBLEMS["three"]
    found = merged(problem, "lego", k=100, output_scale="units", rank=full(problem))
    assert relative(found, sum(problem.deltas)) < 1e-9
