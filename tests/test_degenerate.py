"""Rank-deficient, duplicate and orthogonal modules: merged without NaN, rightly where there is a right answer, and
reported."""

import dense
import pytest
import torch
from helpers import adapter, delta, random_factors, relative, stack
from torch import Tensor

import gam_merge as gm

METHODS = ("gam", "mean")
Pair = tuple[Tensor, Tensor]
DTYPES = {torch.float64: 1e-9, torch.float32: 1e-5}


def rank_deficient(
    generator: torch.Generator, m: int, n: int, r: int, rank: int, dtype: torch.dtype
) -> Pair:
    """Factors with r columns whose product has a smaller rank, exactly so in any dtype: copies of columns."""
    b, a = random_factors(generator, m, n, r, dtype)
    b[:, rank:] = b[:, :1]
    return b, a


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("anchor", [0, 1, 2])
def test_gam_aligns_what_is_there(dtype: torch.dtype, anchor: int) -> None:
    """Numerical ranks 2, 3, 3 in factors of 4 columns: the oracle knows the products alone."""
    generator = torch.Generator().manual_seed(0)
    pairs = [rank_deficient(generator, 14, 11, 4, rank, dtype) for rank in (2, 3, 3)]
    result = gm.merge(stack(pairs), method="gam", weights=[0.2, 0.3, 0.5], anchor=anchor)
    expected = dense.gam([b.double() @ a.double() for b, a in pairs], [0.2, 0.3, 0.5], anchor)
    assert relative(delta(result.adapter), expected) < DTYPES[dtype]
    assert result.report.modules[0].ranks == (2, 3, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("copies", [1, 3])
def test_equal_rank_deficient_deltas_come_back(
    copies: int, method: str, dtype: torch.dtype
) -> None:
    pair = rank_deficient(torch.Generator().manual_seed(1), 14, 11, 5, 2, dtype)
    result = gm.merge(stack([pair] * copies), method=method)
    assert relative(delta(result.adapter), pair[0].double() @ pair[1].double()) < DTYPES[dtype]
    assert result.report.modules[0].ranks == (2,) * copies


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("r", [6, 40])
def test_more_columns_than_the_module_has(method: str, r: int) -> None:
    pair = random_factors(torch.Generator().manual_seed(2), 5, 4, r)
    result = gm.merge(stack([pair, pair]), method=method)
    assert relative(delta(result.adapter), pair[0] @ pair[1]) < 1e-9
    assert result.report.modules[0].ranks == (4, 4)


@pytest.mark.parametrize("method", METHODS)
def test_degenerate_modules_spoil_no_other(method: str) -> None:
    """One bucket of modules of every kind gives what each of them gives alone."""
    generator = torch.Generator().manual_seed(3)
    kinds = {
        "good": lambda: random_factors(generator, 14, 11, 4, torch.float32),
        "deficient": lambda: rank_deficient(generator, 14, 11, 4, 2, torch.float32),
        "zero_b": lambda: (torch.zeros(14, 4), torch.randn(4, 11, generator=generator)),
        "zero_a": lambda: (torch.randn(14, 4, generator=generator), torch.zeros(4, 11)),
        "tiny": lambda: tuple(
            1e-25 * x for x in random_factors(generator, 14, 11, 4, torch.float32)
        ),
    }
    factors = [{name: make() for name, make in kinds.items()} for _ in range(3)]
    together = gm.merge([adapter(f) for f in factors], method=method)
    for name in kinds:
        alone = gm.merge([adapter({name: f[name]}) for f in factors], method=method)
        merged = delta(together.adapter, name)
        assert merged.isfinite().all()
        torch.testing.assert_close(
            merged, delta(alone.adapter, name), rtol=1e-5, atol=1e-5 * float(merged.abs().max())
        )
    assert [module.name for module in together.report.modules if not any(module.ranks)] == [
        "zero_a",
        "zero_b",
    ]


def test_orthogonal_subspaces_are_reported() -> None:
    eye = torch.eye(8, dtype=torch.float64)
    result = gm.merge(stack([(eye[:, :2], eye[:2]), (eye[:, 2:4], eye[:2])]), method="gam")
    assert delta(result.adapter).isfinite().all()
    (warning,) = result.report.warnings
    assert "orthogonal" in warning
    assert result.report.warnings[warning] == ("w",)


def test_well_posed_merge_has_no_warnings() -> None:
    generator = torch.Generator().manual_seed(4)
    assert (
        gm.merge(
            stack([random_factors(generator, 14, 11, 3) for _ in range(3)]), method="gam"
        ).report.warnings
        == {}
    )


def test_reference_of_highest_rank_stands_in_for_a_lower_anchor_and_is_reported() -> None:
    """Aligned to the anchor, the others would be cut down to its rank."""
    generator = torch.Generator().manual_seed(5)
    pairs = [random_factors(generator, 14, 11, r) for r in (2, 4, 4)]
    result = gm.merge(stack(pairs), method="gam", anchor=0)
    expected = dense.gam([b @ a for b, a in pairs], [1 / 3] * 3, 1)
    assert relative(delta(result.adapter), expected) < 1e-9
    (warning,) = result.report.warnings
    assert "adapter 1" in warning
    assert gm.merge(stack(pairs), method="gam", anchor=2).report.warnings == {}


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4])
def test_float32_adapters_with_badly_conditioned_b(exponent: int) -> None:
    """cond(B) up to 1e4: every direction counts in full, however short its column."""
    generator = torch.Generator().manual_seed(exponent)
    pairs = []
    for _ in range(3):
        b, a = random_factors(generator, 60, 50, 6)
        u, _, vt = torch.linalg.svd(b, full_matrices=False)
        b = u * torch.logspace(0, -exponent, 6, dtype=torch.float64) @ vt
        pairs.append((b.float(), a.float()))
    result = gm.merge(stack(pairs), method="gam", weights=[0.5, 0.3, 0.2])
    expected = dense.gam([b.double() @ a.double() for b, a in pairs], [0.5, 0.3, 0.2])
    assert relative(delta(result.adapter), expected) < 1e-5
