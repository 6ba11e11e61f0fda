"""Only the product B A counts: other factors of the same deltas give the same merge."""

from dataclasses import replace

import pytest
import torch
from helpers import delta, relative
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import Problem, generators, problems, well_posed
from torch import Tensor

import gam_merge as gm

METHODS = ("gam", "mean")


def invertible(generator: torch.Generator, r: int, condition: float) -> Tensor:
    """A random (r, r) matrix of that condition number, far from orthogonal."""
    p, q = (
        torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64))[0]
        for _ in range(2)
    )
    return p * torch.logspace(0, -torch.tensor(condition).log10(), r, dtype=torch.float64) @ q


@pytest.mark.parametrize("method", METHODS)
@given(problems(), generators, st.sampled_from([1.0, 10.0, 1e4]))
def test_merge_does_not_depend_on_the_factors(
    method: str, problem: Problem, generator: torch.Generator, condition: float
) -> None:
    assume(well_posed(problem))
    gauges = [invertible(generator, a.shape[0], condition) for _, a in problem.pairs]
    changed = [
        (b @ g, torch.linalg.solve(g, a)) for (b, a), g in zip(problem.pairs, gauges, strict=True)
    ]
    original, other = (
        delta(gm.merge(p.adapters, method=method, weights=p.weights).adapter)
        for p in (problem, replace(problem, pairs=tuple(changed)))
    )
    assert relative(other, original) < 1e-8


@pytest.mark.parametrize("method", METHODS)
@given(problems(), st.integers(-8, 8))
def test_scale_may_sit_in_either_factor(method: str, problem: Problem, exponent: int) -> None:
    """B and A of wildly unlike size, as after folding the scale into one of them."""
    assume(well_posed(problem))
    c = 10.0**exponent
    changed = replace(problem, pairs=tuple((b * c, a / c) for b, a in problem.pairs))
    original, other = (
        delta(gm.merge(p.adapters, method=method, weights=p.weights).adapter)
        for p in (problem, changed)
    )
    assert relative(other, original) < 1e-9
