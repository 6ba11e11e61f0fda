"""Merges that the tests of the catalogue share: adapters that overlap by a chosen share."""

from collections.abc import Sequence
from typing import Any

import torch
from helpers import delta, random_factors, stack
from strategies import Problem
from torch import Tensor

import gam_merge as gm


def related(
    *,
    seed: int = 0,
    count: int = 3,
    shape: tuple[int, int] = (14, 11),
    ranks: Sequence[int] = (3,),
    shared: float = 0.6,
) -> Problem:
    """Adapters whose factors are a common part and a part of their own, and uneven weights."""
    generator = torch.Generator().manual_seed(seed)
    ranks = [ranks[i % len(ranks)] for i in range(count)]
    b0, a0 = random_factors(generator, *shape, max(ranks))
    pairs = []
    for r in ranks:
        b, a = random_factors(generator, *shape, r)
        pairs.append((shared * b0[:, :r] + (1 - shared) * b, shared * a0[:r] + (1 - shared) * a))
    raw = torch.rand(count, generator=generator) + 0.5
    return Problem(tuple(pairs), tuple((raw.double() / raw.double().sum()).tolist()))


PROBLEMS = {
    "two": related(count=2),
    "three": related(seed=1),
    "mixed ranks": related(seed=2, count=4, ranks=(4, 2, 1, 3)),
    "apart": related(seed=3, count=3, shape=(30, 28), shared=0.0),
    "close": related(seed=4, count=3, shared=0.8),
    "full": related(seed=5, count=4, shape=(6, 5), ranks=(3,)),  # together they span everything
}


def full(problem: Problem) -> int:
    """A rank at which nothing is cut."""
    m, n = problem.pairs[0][0].shape[0], problem.pairs[0][1].shape[1]
    return min(m, n)


def merged(
    problem: Problem,
    method: str,
    *,
    rank: int | None = None,
    weights: Sequence[float] | None = None,
    **params: Any,
) -> Tensor:
    """The dense result, uncut unless a rank is given."""
    result = gm.merge(
        problem.adapters,
        method=method,
        weights=problem.weights if weights is None else weights,
        rank=full(problem) if rank is None else rank,
        params=params,
    )
    return delta(result.adapter)


def adapters(*deltas: tuple[Tensor, Tensor]) -> list[gm.Adapter]:
    return stack(deltas)
