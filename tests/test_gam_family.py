"""GAM's options against dense float64, and what they are for."""

import dense
import dense_methods as oracle
import pytest
import torch
from catalogue import PROBLEMS, merged, related
from helpers import delta, relative, stack
from strategies import Problem

import gam_merge as gm


@pytest.mark.parametrize("name", ["two", "three", "mixed ranks", "close", "full"])
@pytest.mark.parametrize("orthonormalize", ["none", "polar"])
@pytest.mark.parametrize("anchor", ["adapter", "mean"])
def test_equals_the_equations(name: str, anchor: str, orthonormalize: str) -> None:
    problem = PROBLEMS[name]
    expected = oracle.gam(
        problem.deltas,
        problem.weights,
        anchor=0 if anchor == "adapter" else None,
        orthonormal=orthonormalize == "polar",
    )
    found = merged(problem, "gam", anchor=anchor, orthonormalize=orthonormalize, iterations=1000)
    assert relative(found, expected) < 1e-9


@pytest.mark.parametrize("orthonormalize", ["none", "polar"])
@pytest.mark.parametrize("name", ["two", "three", "mixed ranks", "close", "full"])
def test_without_an_anchor_it_is_the_projected_mean(name: str, orthonormalize: str) -> None:
    problem = PROBLEMS[name]
    found = merged(problem, "gam", anchor="none", orthonormalize=orthonormalize)
    assert relative(found, oracle.projected_mean(problem.deltas, problem.weights)) < 1e-9


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.6, 0.9])
def test_of_two_equal_weights_the_paper_needs_no_anchor(shared: float) -> None:
    """docs/gam.md: U~ = U +- D with U^T D = 0, so the mean of the aligned parts is a projection."""
    for seed in range(5):
        problem = related(count=2, seed=seed, shape=(40, 30), ranks=(4,), shared=shared)
        even = Problem(problem.pairs, (0.5, 0.5))
        paper, free = merged(even, "gam"), merged(even, "gam", anchor="none")
        assert relative(free, paper) < 1e-10


def test_of_two_uneven_weights_it_does() -> None:
    problem = Problem(related(count=2, seed=0).pairs, (0.7, 0.3))
    assert relative(merged(problem, "gam", anchor="none"), merged(problem, "gam")) > 1e-3


def test_without_an_anchor_it_knows_no_order() -> None:
    problem = related(count=4, seed=7)
    turned = Problem(problem.pairs[::-1], problem.weights[::-1])
    one, other = merged(problem, "gam", anchor="none"), merged(turned, "gam", anchor="none")
    assert relative(one, other) < 1e-9


def test_defaults_are_the_paper() -> None:
    problem = PROBLEMS["three"]
    assert relative(merged(problem, "gam"), dense.gam(problem.deltas, problem.weights)) < 1e-9


@pytest.mark.parametrize("anchor", ["adapter", "mean"])
def test_rescale_restores_the_mean_norm(anchor: str) -> None:
    problem = PROBLEMS["three"]
    plain = merged(problem, "gam", anchor=anchor)
    expected = oracle.rescaled(plain, problem.deltas, problem.weights)
    assert relative(merged(problem, "gam", anchor=anchor, rescale="norm"), expected) < 1e-9


def test_the_running_mean_knows_no_order() -> None:
    problem = related(count=4, seed=7)
    turned = Problem(problem.pairs[::-1], problem.weights[::-1])
    one, other = merged(problem, "gam", anchor="mean"), merged(turned, "gam", anchor="mean")
    assert relative(one, other) < 1e-9
    assert (
        relative(merged(problem, "gam"), merged(turned, "gam")) > 1e-3
    )  # an adapter as the anchor does


def test_says_that_it_did_not_converge() -> None:
    problem = PROBLEMS["three"]
    result = gm.merge(problem.adapters, method="gam", params={"anchor": "mean", "iterations": 1})
    assert "the running mean did not converge" in result.report.warnings
    converged = gm.merge(problem.adapters, method="gam", params={"anchor": "mean"})
    assert not converged.report.warnings


@pytest.mark.parametrize("anchor", ["mean", "none"])
def test_says_that_the_mean_is_arbitrary(anchor: str) -> None:
    """Subspaces at right angles: every rotation is as good as any other."""
    eye = torch.eye(9, dtype=torch.float64)
    pairs = [(eye[:, s], eye[s]) for s in (slice(0, 3), slice(3, 6))]
    result = gm.merge(stack(pairs), method="gam", params={"anchor": anchor})
    assert "the adapters share too little: their mean is arbitrary" in result.report.warnings
    assert delta(result.adapter).isfinite().all()


@pytest.mark.parametrize(
    "options",
    [{"anchor": "mean"}, {"anchor": "none"}, {"orthonormalize": "polar"}, {"rescale": "norm"}],
)
def test_equal_deltas_come_back(options: dict[str, str]) -> None:
    pair = PROBLEMS["three"].pairs[0]
    found = delta(gm.merge(stack([pair] * 3), method="gam", params=options).adapter)
    assert relative(found, pair[0] @ pair[1]) < 1e-9
