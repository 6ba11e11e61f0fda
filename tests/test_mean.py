"""The mean of the deltas, against dense float64."""

import dense
import pytest
import torch
from helpers import delta, relative
from hypothesis import given
from hypothesis import strategies as st
from strategies import Problem, problems

import gam_merge as gm

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(st.data())
def test_is_the_mean_cut_to_the_output_rank(dtype: torch.dtype, data: st.DataObject) -> None:
    problem = data.draw(problems(dtype=dtype))
    rank = data.draw(st.none() | st.integers(1, 8))
    result = gm.merge(problem.adapters, method="mean", weights=problem.weights, rank=rank)
    full = dense.mean(problem.deltas, problem.weights)
    cut = dense.mean(problem.deltas, problem.weights, result.report.rank)
    # Measured against the whole mean: a cut between two nearly equal singular values is free to choose.
    assert (
        float((delta(result.adapter) - full).norm() - (cut - full).norm())
        < TOLERANCE[dtype] * full.norm()
    )
    assert result.report.energy_kept == pytest.approx(
        float(cut.norm() ** 2 / full.norm() ** 2), rel=TOLERANCE[dtype]
    )


@given(problems())
def test_is_exact_at_the_sum_of_ranks(problem: Problem) -> None:
    rank = sum(a.shape[0] for _, a in problem.pairs)
    result = gm.merge(problem.adapters, method="mean", weights=problem.weights, rank=rank)
    assert relative(delta(result.adapter), dense.mean(problem.deltas, problem.weights)) < 1e-9
    assert result.report.energy_kept == 1.0


@given(problems())
def test_order_does_not_matter(problem: Problem) -> None:
    turned = Problem(problem.pairs[::-1], problem.weights[::-1])
    rank = sum(a.shape[0] for _, a in problem.pairs)
    one, other = (
        delta(gm.merge(p.adapters, method="mean", weights=p.weights, rank=rank).adapter)
        for p in (problem, turned)
    )
    assert relative(one, other) < 1e-9
