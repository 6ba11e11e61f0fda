"""GAM against the paper's equations in dense float64, and the facts that follow from them."""

import dense
import pytest
import torch
from helpers import adapter, delta, random_factors, relative, stack
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import Problem, problems, well_posed

import gam_merge as gm


def gam(adapters: list[gm.Adapter], **options: object) -> torch.Tensor:
    return delta(gm.merge(adapters, method="gam", **options).adapter)


@given(problems(), st.integers(0, 4))
def test_equals_the_equations_in_float64(problem: Problem, anchor: int) -> None:
    assume(well_posed(problem))
    anchor %= len(problem.pairs)
    expected = dense.gam(problem.deltas, problem.weights, anchor)
    assert relative(gam(problem.adapters, weights=problem.weights, anchor=anchor), expected) < 1e-9


@given(problems(dtype=torch.float32))
def test_equals_the_equations_in_float32(problem: Problem) -> None:
    assume(well_posed(problem))
    expected = dense.gam(problem.deltas, problem.weights)
    assert relative(gam(problem.adapters, weights=problem.weights), expected) < 1e-5


@given(problems(sizes=(2, 2), equal_ranks=True))
def test_of_two_the_anchor_does_not_matter(problem: Problem) -> None:
    assume(well_posed(problem))
    first, second = (gam(problem.adapters, weights=problem.weights, anchor=i) for i in (0, 1))
    assert relative(first, second) < 1e-9


def test_of_three_the_anchor_matters() -> None:
    generator = torch.Generator().manual_seed(0)
    adapters = stack([random_factors(generator, 12, 9, 3) for _ in range(3)])
    first, second = gam(adapters, anchor=0), gam(adapters, anchor=1)
    assert relative(first, second) > 0.1


@given(problems(sizes=(3, 5), equal_ranks=True), st.randoms(use_true_random=False))
def test_order_of_the_others_does_not_matter(problem: Problem, random: object) -> None:
    assume(well_posed(problem))
    order = list(range(1, len(problem.pairs)))
    random.shuffle(order)  # type: ignore[attr-defined]
    order = [0, *order]
    shuffled = [problem.adapters[i] for i in order]
    weights = [problem.weights[i] for i in order]
    assert (
        relative(gam(shuffled, weights=weights), gam(problem.adapters, weights=problem.weights))
        < 1e-9
    )


@given(problems(sizes=(3, 5), equal_ranks=True))
def test_the_anchor_may_stand_anywhere(problem: Problem) -> None:
    """By position or by name, the anchor is the adapter and not its place in the list."""
    assume(well_posed(problem))
    turned = Problem(
        problem.pairs[1:] + problem.pairs[:1], problem.weights[1:] + problem.weights[:1]
    )
    expected = gam(problem.adapters, weights=problem.weights)
    assert (
        relative(
            gam(turned.adapters, weights=turned.weights, anchor=len(turned.pairs) - 1), expected
        )
        < 1e-9
    )
    name = turned.adapters[-1].source
    assert relative(gam(turned.adapters, weights=turned.weights, anchor=name), expected) < 1e-9


@given(problems(), st.floats(-3, 3))
def test_scales_with_the_deltas(problem: Problem, exponent: float) -> None:
    assume(well_posed(problem))
    c = 10.0**exponent
    scaled = [adapter({"w": pair}, scale=c, source=str(i)) for i, pair in enumerate(problem.pairs)]
    expected = c * gam(problem.adapters, weights=problem.weights)
    assert relative(gam(scaled, weights=problem.weights), expected) < 1e-9


@given(problems())
def test_is_no_longer_than_the_mean_length(problem: Problem) -> None:
    bound = sum(w * d.norm() for w, d in zip(problem.weights, problem.deltas, strict=True))
    assert gam(problem.adapters, weights=problem.weights).norm() <= bound * (1 + 1e-12)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_private_directions_shrink_with_the_square_of_their_number(count: int) -> None:
    """Orthogonal subspaces with equal cores: of each adapter's basis 1 / N is left, on either side."""
    u, v = torch.eye(20, dtype=torch.float64), torch.eye(16, dtype=torch.float64)
    hair = 1e-5  # of the anchor's directions in the others: it makes the alignment unique
    spaces = [slice(2 * i, 2 * i + 2) for i in range(count)]
    pairs = [(u[:, s] + hair * u[:, spaces[0]], v[s] + hair * v[spaces[0]]) for s in spaces]
    assert gm.merge(stack(pairs), method="gam").report.survival == pytest.approx(
        [1 / count**2] * count, rel=1e-3
    )


def test_says_when_it_erased_what_the_mean_keeps():
    generator = torch.Generator().manual_seed(0)
    unrelated = stack([random_factors(generator, 60, 50, 3) for _ in range(3)])
    related = stack([random_factors(generator, 60, 50, 3)] * 3)
    assert any(
        "gam keeps at most" in note for note in gm.merge(unrelated, method="gam").report.notes
    )
    assert (
        gm.merge(unrelated, method="mean", rank=9).report.notes
        == gm.merge(related, method="gam").report.notes
        == ()
    )
    assert gm.merge(related, method="mean", params={"scale": 0.1}).report.notes == ()
    zeros = stack([(0 * b, a) for b, a in [random_factors(generator, 60, 50, 3)] * 2])
    assert not any("keeps" in note for note in gm.merge(zeros, method="gam").report.notes)
