"""Deltas in orthonormal coordinates, and what is read off them, against the dense matrices."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import generators
from torch import Tensor

import gam_kernels
from gam_kernels import (
    Delta,
    compress,
    factored_delta,
    gram,
    norm,
    rank_for_energy,
    response,
)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


@dataclass(frozen=True)
class Factors:
    """A stack of b (L, m, r) and a (L, n, r)."""

    b: Tensor
    a: Tensor

    @property
    def dense(self) -> Tensor:
        return self.b.double() @ self.a.double().mT


@st.composite
def factors(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> Factors:
    """Full rank, or with linearly dependent or zero columns, exactly so in every dtype."""
    modules, m, n, r = (draw(st.integers(1, top)) for top in (3, 12, 12, 6))
    generator = draw(generators)
    b, a = (torch.randn(modules, size, r, generator=generator).to(dtype) for size in (m, n))
    for x in (b, a):
        for j in draw(st.sets(st.integers(0, r - 1))):
            x[..., j] = draw(st.sampled_from([0.0, 1.0, -2.0])) * x[..., (j + 1) % r]
    return Factors(b, a)


def reassemble(x: Delta) -> Tensor:
    return x.b64 @ x.u @ x.core @ (x.a64 @ x.v).mT


def close(actual: Tensor, expected: Tensor, scale: Tensor, tolerance: float) -> bool:
    return bool((actual - expected).abs().max() <= tolerance * scale.abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(st.data())
def test_coordinates_are_orthonormal_and_exact(dtype: torch.dtype, data: st.DataObject) -> None:
    f = data.draw(factors(dtype))
    scale = torch.tensor([0.5, 3.0, 20.0])[: len(f.b)]
    x = factored_delta(f.b, f.a, scale)
    expected = f.dense * scale.double()[:, None, None]
    assert close(reassemble(x), expected, expected, 1e-8 if dtype == torch.float32 else 1e-13)
    assert x.rank.tolist() == torch.linalg.matrix_rank(expected, rtol=1e-10).tolist()
    for j, k in enumerate(x.rank.tolist()):
        for basis in (x.b64[j] @ x.u[j], x.a64[j] @ x.v[j]):
            torch.testing.assert_close(
                basis[:, :k].T @ basis[:, :k], torch.eye(k).double(), rtol=0, atol=1e-8
            )
            assert not basis[:, k:].any()


def thin_svd(x: Delta) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U (L, m, k), S (L, k) descending, V (L, n, k) of factored deltas, through their cores."""
    p, s, qt = torch.linalg.svd(x.core)
    return x.b64 @ (x.u @ p), s, x.a64 @ (x.v @ qt.mT)


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(st.data())
def test_svd_norm_and_inner_product_are_those_of_the_dense_matrix(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    f, tolerance = data.draw(factors(dtype)), TOLERANCE[dtype]
    x = factored_delta(f.b, f.a, torch.ones(len(f.b)))
    u, s, v = thin_svd(x)
    k = min(s.shape[-1], *f.dense.shape[1:])
    assert close((u * s.unsqueeze(-2)) @ v.mT, f.dense, f.dense, tolerance)
    assert close(
        s[:, :k], torch.linalg.svdvals(f.dense)[:, :k], f.dense.flatten(1).norm(dim=1), tolerance
    )
    assert close(
        norm(x), torch.linalg.matrix_norm(f.dense), torch.linalg.matrix_norm(f.dense), tolerance
    )
    generator = data.draw(generators)
    b, a = (torch.randn(*t.shape[:2], 3, generator=generator).to(dtype) for t in (f.b, f.a))
    expected = (f.dense * (b.double() @ a.double().mT)).sum((1, 2))
    other = torch.linalg.matrix_norm(b.double() @ a.double().mT)
    bound = torch.linalg.matrix_norm(f.dense) * other
    found = response(x, b, a)
    assert close((x.core * found).sum((1, 2)), expected, bound, 10 * tolerance)
    u, _, v = (t.double() for t in thin_svd(x))
    within = torch.linalg.matrix_norm(u.mT @ (b.double() @ a.double().mT) @ v)
    assert close(
        torch.linalg.matrix_norm(found),
        within,
        torch.linalg.matrix_norm(b.double() @ a.double().mT),
        10 * tolerance,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rank_of_a_delta_is_that_of_the_product(dtype: torch.dtype) -> None:
    """Columns that the two factors scale in opposite ways are all there; scaled the same way, the product is cut."""
    generator = torch.Generator().manual_seed(0)
    b, a = (torch.randn(1, size, 3, generator=generator, dtype=torch.float64) for size in (20, 30))
    lengths = torch.tensor([1.0, 1e-10, 1e10], dtype=torch.float64)
    ones = torch.ones(1)
    opposite = factored_delta((b * lengths).to(dtype), (a / lengths).to(dtype), ones)
    assert opposite.rank.tolist() == [3]
    assert close(reassemble(opposite), b @ a.mT, b @ a.mT, TOLERANCE[dtype])
    assert factored_delta((b * lengths).to(dtype), (a * lengths).to(dtype), ones).rank.tolist() == [
        1
    ]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.floats(0.01, 1.0))
def test_rank_for_energy_is_the_least_that_serves(values: list[float], energy: float) -> None:
    s = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    k = int(rank_for_energy(s, energy))
    total = float(s.square().sum())
    if total == 0:
        assert k == 0
        return
    kept = [float(s[:j].square().sum()) / total for j in range(len(values) + 1)]
    assert kept[k] >= energy - 1e-13
    assert kept[k - 1] < energy


def test_rank_for_energy_of_leading_values() -> None:
    """Against the norm of the whole: one more than there are where they do not suffice."""
    s = torch.tensor([[2.0, 1.0], [2.0, 1.0]], dtype=torch.float64)
    total = torch.tensor([5.0, 10.0], dtype=torch.float64)
    assert rank_for_energy(s, 0.8, total=total).tolist() == [1, 3]


def test_rank_for_energy_of_a_stack() -> None:
    s = torch.tensor([[2.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert rank_for_energy(s, 0.6).tolist() == [1, 1, 0]
    assert rank_for_energy(s, 0.8).tolist() == [2, 1, 0]
    assert rank_for_energy(s, 1.0).tolist() == [3, 1, 0]


@given(factors(), st.data())
def test_compressed_columns_are_balanced_singular_pairs(f: Factors, data: st.DataObject) -> None:
    """Dependent, duplicate and zero columns of the stacked factors do no harm."""
    generator = data.draw(generators)
    width = data.draw(st.integers(1, 5))
    left, right = (
        torch.randn(len(f.b), f.b.shape[-1], width, generator=generator).double() for _ in range(2)
    )
    if data.draw(st.booleans()):
        left[..., -1] = 0
    full = f.b @ left @ (f.a @ right).mT
    new_left, new_right, s = compress(left, right, gram(f.b, f.b), gram(f.a, f.a))
    scale = torch.linalg.matrix_norm(full, ord=2)
    expected = torch.zeros(len(f.b), width).double()
    values = torch.linalg.svdvals(full)[:, :width]
    expected[:, : values.shape[-1]] = values
    assert close(s, expected, scale, 1e-7)
    x, y = f.b @ new_left, f.a @ new_right
    assert close(x @ y.mT, full, scale, 1e-7)
    for columns in (x, y):
        assert close(columns.mT @ columns, torch.diag_embed(s), scale, 1e-7)
    rank = data.draw(st.integers(0, width))
    first, second, whole = compress(left, right, gram(f.b, f.b), gram(f.a, f.a), rank=rank)
    assert whole.equal(s)
    assert close(f.b @ first @ (f.a @ second).mT, x[..., :rank] @ y[..., :rank].mT, scale, 1e-12)


def test_compressing_nothing_gives_nothing() -> None:
    zero = torch.zeros(2, 3, 2, dtype=torch.float64)
    left, right, s = compress(
        zero, zero, torch.zeros(2, 3, 3).double(), torch.zeros(2, 3, 3).double()
    )
    assert not torch.cat([left, right, s.unsqueeze(1)], 1).any()


@pytest.mark.parametrize("exponent", [1, 2, 4, 6])
def test_a_cut_is_as_good_as_the_best(exponent: int) -> None:
    """Graded spectra, which squaring in a Gram matrix would spoil: the error of the cut exceeds that of the dense
    singular value decomposition by less than 1e-9 of the whole."""
    generator = torch.Generator().manual_seed(exponent)
    m, n, r = 30, 20, 8
    q = [
        torch.linalg.qr(torch.randn(1, size, r, generator=generator, dtype=torch.float64))[0]
        for size in (m, n)
    ]
    s = torch.logspace(0, -exponent, r, dtype=torch.float64)
    g = torch.randn(r, r, generator=generator, dtype=torch.float64)
    b, a = q[0] * s @ g, q[1] @ torch.linalg.inv(g).T
    eye = torch.eye(r, dtype=torch.float64).expand(1, r, r)
    left, right, _ = compress(eye, eye, gram(b, b), gram(a, a))
    full = b @ a.mT
    for k in range(1, r):
        error = full - (b @ left[..., :k]) @ (a @ right[..., :k]).mT
        assert float(error.norm() - s[k:].norm()) < 1e-9


@pytest.mark.parametrize("condition", [1e0, 1e2, 1e6, math.inf], ids="{:.0e}".format)
@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (9, 5)])
def test_thin_svd_is_that_of_lapack(shape: tuple[int, int], condition: float) -> None:
    """From eigenvectors where the condition number allows it, together with modules where not."""
    generator = torch.Generator().manual_seed(0)
    (p, q), k = shape, min(shape)
    left, _ = torch.linalg.qr(torch.randn(2, p, k, generator=generator).double())
    right, _ = torch.linalg.qr(torch.randn(2, q, k, generator=generator).double())
    expected = torch.logspace(0, -1, k).double().repeat(2, 1)
    expected[1] = torch.logspace(0, -math.log10(min(condition, 1e6)), k)
    expected[1, -1] = 1 / condition
    x = left * expected.unsqueeze(-2) @ right.mT
    u, s, vt = gam_kernels.thin_svd(x)
    torch.testing.assert_close(u * s.unsqueeze(-2) @ vt, x, rtol=0, atol=1e-14)
    torch.testing.assert_close(s, expected, rtol=0, atol=1e-14)
    eye = torch.eye(k).double().expand(2, k, k)
    # eps times the square of the largest condition number that takes the fast route
    torch.testing.assert_close(u.mT @ u, eye, rtol=0, atol=3e-10)
    torch.testing.assert_close(vt @ vt.mT, eye, rtol=0, atol=3e-10)
