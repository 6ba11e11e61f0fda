"""Orthonormal bases, by each of the three routes, against QR in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import generators
from torch import Tensor

from gam_kernels import Basis, gram, orthonormalize, stacked_gram

EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


def graded(generator: torch.Generator, m: int, r: int, condition: float, count: int = 3) -> Tensor:
    """(L, m, r) float64 with singular values from 1 down to 1 / condition."""
    u, _ = torch.linalg.qr(torch.randn(count, m, r, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(count, r, r, generator=generator, dtype=torch.float64))
    return (u * torch.logspace(0, -torch.tensor(condition).log10(), r, dtype=torch.float64)) @ v.mT


def check(x: Tensor, basis: Basis, tolerance: float) -> None:
    """q is orthonormal in its first ``rank`` columns, q core = x, and q spans what QR spans."""
    q = basis.factor @ basis.coef  # (L, m, r)
    torch.testing.assert_close(q @ basis.core, x, rtol=0, atol=tolerance * float(x.abs().max()))
    for j, k in enumerate(basis.rank.tolist()):
        torch.testing.assert_close(
            q[j, :, :k].T @ q[j, :, :k], torch.eye(k).double(), rtol=0, atol=tolerance
        )
        assert not basis.coef[j, :, k:].any()
        assert not basis.core[j, k:].any()


def projector(q: Tensor) -> Tensor:
    return q @ q.mT


@pytest.mark.parametrize(
    ("eps", "condition", "route"),
    [
        (EPS32, 1e0, "narrow"),
        (EPS32, 1e1, "narrow"),
        (EPS32, 1e2, "wide"),
        (EPS32, 1e3, "wide"),
        *((EPS32, 10.0**e, "householder") for e in range(5, 13)),
        *((EPS64, 10.0**e, "householder") for e in range(13)),
    ],
)
def test_each_route_spans_what_qr_spans(eps: float, condition: float, route: str) -> None:
    x = graded(torch.Generator().manual_seed(0), 40, 6, condition)
    basis = orthonormalize(x, eps=eps)
    taken = ["narrow", "wide", "householder"][int(basis.wide.any()) + int(basis.revealed.any())]
    assert taken == route
    assert basis.rank.tolist() == [6] * 3
    check(x, basis, 1e-13 if route == "householder" else eps / 8)
    q, _ = torch.linalg.qr(x)
    span = 10 * EPS64 * condition  # no algorithm knows the span better than that
    assert (projector(basis.factor @ basis.coef) - projector(q)).abs().max() < span + eps / 8


def test_routes_are_chosen_module_by_module() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.cat(
        [graded(generator, 30, 4, c, 1) for c in (2.0, 300.0, 1e6)]
        + [torch.zeros(1, 30, 4).double()]
    )
    basis = orthonormalize(x, eps=EPS32)
    assert basis.wide.tolist() == [False, True, True, True]
    assert basis.revealed.tolist() == [False, False, True, True]
    assert basis.rank.tolist() == [4, 4, 4, 0]
    check(x, basis, EPS32 / 8)


@pytest.mark.parametrize("eps", [EPS32, EPS64])
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_any_shape_and_any_rank(eps: float, m: int, r: int, data: st.DataObject) -> None:
    """Wide matrices (m < r), zero columns and linearly dependent ones."""
    rank = data.draw(st.integers(0, min(m, r)))
    generator = data.draw(generators)
    # Products of small integers are exact, so that the rank of x is no matter of rounding.
    left, right = (
        torch.randint(-3, 4, (2, *s), generator=generator).double() for s in ((m, rank), (rank, r))
    )
    x = left @ right
    basis = orthonormalize(x, eps=eps)
    assert basis.rank.tolist() == torch.linalg.matrix_rank(x).tolist()
    check(x, basis, EPS32 / 8 if eps == EPS32 else 1e-13)


@pytest.mark.parametrize("eps", [EPS32, EPS64])
def test_length_of_a_column_does_not_count(eps: float) -> None:
    """Columns from 1e-30 to 1e30 are as good as unit columns: the other factor may undo their scale."""
    x = graded(torch.Generator().manual_seed(2), 30, 5, 3.0)
    scaled = x * torch.tensor([1e-30, 1.0, 1e30, 1e-12, 1e8], dtype=torch.float64)
    basis = orthonormalize(scaled, eps=eps)
    assert basis.rank.tolist() == [5] * 3
    q = basis.factor @ basis.coef
    torch.testing.assert_close(q.mT @ q, torch.eye(5).double().expand(3, 5, 5), rtol=0, atol=1e-13)
    torch.testing.assert_close(q @ basis.core / scaled, torch.ones_like(x), rtol=1e-9, atol=0)


def test_rank_is_decided_in_float64() -> None:
    """A direction of one unit in the last place of float32 is real, though float32 would call it rounding; a copy of
    a column is not."""
    x = graded(torch.Generator().manual_seed(3), 30, 4, 1.0, 1).float()
    nearly, copied = x.clone(), x.clone()
    nearly[0, :, 3] = nearly[0, :, 2]
    nearly[0, 0, 3] = torch.nextafter(nearly[0, 0, 2], torch.tensor(torch.inf))
    copied[0, :, 3] = copied[0, :, 2]
    assert orthonormalize(nearly.double(), eps=EPS32).rank.tolist() == [4]
    assert orthonormalize(copied.double(), eps=EPS32).rank.tolist() == [3]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("eps", [EPS32, EPS64])
def test_non_finite_modules_stay_so_and_spoil_no_other(eps: float, value: float) -> None:
    x = graded(torch.Generator().manual_seed(4), 10, 3, 2.0)
    x[1, 4, 2] = value
    basis = orthonormalize(x, eps=eps)
    assert basis.core.isfinite().flatten(1).all(-1).tolist() == [True, False, True]


def test_gram_is_summed_in_float64() -> None:
    x = torch.cat([torch.ones(1), torch.full((1_000_000,), 1e-4)]).reshape(1, -1, 1)
    assert gram(x, x).item() == pytest.approx(1 + 1e-2, rel=1e-7)


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_gram_of_more_rows_than_are_converted_at_a_time(layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 9001, r, generator=generator) for r in (7, 5))
    x = x if layout == "rows" else x.mT.contiguous().mT
    for left, right in ((x, y), (x, x), (y, x)):
        expected = left.double().mT @ right.double()
        torch.testing.assert_close(gram(left, right), expected, rtol=0, atol=1e-13 * 9001)
    side_by_side = torch.cat([x, y], -1).double()
    expected = side_by_side.mT @ side_by_side
    torch.testing.assert_close(stacked_gram([x, y]), expected, rtol=0, atol=1e-13 * 9001)


def test_gram_of_more_columns_than_a_strip_is_mirrored() -> None:
    generator = torch.Generator().manual_seed(0)
    for widths in ((70, 1, 90), (64, 64), (130,)):
        pieces = [torch.randn(2, 300, r, generator=generator) for r in widths]
        x = torch.cat(pieces, -1).double()
        g = stacked_gram(pieces)
        torch.testing.assert_close(g, x.mT @ x, rtol=0, atol=1e-13 * 300)
        assert torch.equal(g[:, 64:, :64], g[:, :64, 64:].mT)
