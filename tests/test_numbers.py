"""Numbers under attack: a merge is right, or refused in words; nothing written is NaN or Inf, nor is a report."""

import json
from pathlib import Path

import dense
import pytest
import torch
from helpers import adapter, delta, random_factors, relative, stack, write_adapter
from safetensors.torch import load_file
from torch import Tensor

import gam_merge as gm

METHODS = (
    "mean",
    "gam",
    "ties@core",
    "tsvm",
    "iso_c",
    "consensus",
    "dare_ties@delta",
    "frechet",
    "dc_merge",
)
Pair = tuple[Tensor, Tensor]
EPS = {torch.float64: 1e-9, torch.float32: 1e-5}


def pairs(
    count: int, dtype: torch.dtype = torch.float64, *, r: int = 3, seed: int = 0
) -> list[Pair]:
    generator = torch.Generator().manual_seed(seed)
    return [random_factors(generator, 14, 11, r, dtype) for _ in range(count)]


def scaled(pair: Pair, b: float, a: float = 1.0) -> Pair:
    return pair[0] * b, pair[1] * a


def sound(result: gm.MergeResult) -> gm.MergeResult:
    """Factors, report and card hold finite numbers alone."""
    for module in result.adapter.modules.values():
        assert all(factor.isfinite().all() for factor in module.factors())
    json.dumps(result.report.to_dict(), allow_nan=False)
    return result


def mean(deltas: list[Pair]) -> Tensor:
    return sum((b.double() @ a.double() for b, a in deltas), torch.zeros(14, 11).double()) / len(
        deltas
    )


EXTREMES: dict[str, list[Pair]] = {
    **{f"float64 times 1e{e}": [scaled(p, 10.0**e) for p in pairs(2)] for e in (-140, -60, 20, 55)},
    **{
        f"float64 1e{e} beside 1": [scaled(pairs(2)[0], 10.0**e), pairs(2)[1]]
        for e in (-300, -60, 12, 55)
    },
    **{
        f"float32 times 1e{e}": [scaled(p, 10.0**e) for p in pairs(2, torch.float32)]
        for e in (-36, -20, 20, 37)
    },
    **{
        f"float32 both times 1e{e}": [scaled(p, 10.0**e, 10.0**e) for p in pairs(2, torch.float32)]
        for e in (-25, 25)
    },
    "float32 large B, small A": [scaled(p, 1e30, 1e-30) for p in pairs(2, torch.float32)],
    "float32 large B, small A, and the other way": [
        scaled(pair, *sizes)
        for pair, sizes in zip(pairs(2, torch.float32), [(1e30, 1e-30), (1e-30, 1e30)], strict=True)
    ],
    "norms 1e12 apart": [scaled(pairs(2, torch.float32)[0], 1e12), pairs(2, torch.float32)[1]],
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("method", METHODS)
def test_sizes(method: str, name: str) -> None:
    """Every size is that of a problem of ordinary size, times a power of ten."""
    found = sound(gm.merge(stack(EXTREMES[name]), method=method, rank=6))
    if method == "mean":
        expected = mean(EXTREMES[name])
        top = expected.abs().max()  # squares of the smallest are zero
        assert (
            relative(delta(found.adapter) / top, expected / top) < EPS[EXTREMES[name][0][0].dtype]
        )


@pytest.mark.parametrize("method", ["mean", "gam", "ties@core", "tsvm", "iso_c", "consensus"])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_a_merge_of_large_ones_is_a_large_merge(size: float, method: str) -> None:
    """In float32 no product of full size would be within its range."""
    ordinary = delta(sound(gm.merge(stack(pairs(3, torch.float32)), method=method)).adapter)
    large = [scaled(pair, size) for pair in pairs(3, torch.float32)]
    assert (
        relative(delta(sound(gm.merge(stack(large), method=method)).adapter) / size, ordinary)
        < 1e-5
    )


def test_report_of_large_ones_is_that_of_ordinary_ones() -> None:
    ordinary, large = (
        gm.merge(stack([scaled(pair, size) for pair in pairs(2, torch.float32)])).report
        for size in (1.0, 1e30)
    )
    assert large.survival == pytest.approx(ordinary.survival, rel=1e-5)
    assert large.norm_ratio == pytest.approx(ordinary.norm_ratio, rel=1e-5)
    assert large.merged_norm == pytest.approx(1e30 * ordinary.merged_norm, rel=1e-5)
    assert large.fallbacks == ("w",)


BEYOND = {
    "product": scaled(pairs(1)[0], 1e61),
    "squares": scaled(pairs(1)[0], 1e160),
    "largest": scaled(pairs(1)[0], 1e300),
    "hidden by the other factor": scaled(pairs(1)[0], 1e200, 1e-200),
    "float32": scaled(pairs(1, torch.float32)[0], 1e35, 1e35),
}


@pytest.mark.parametrize("name", BEYOND)
@pytest.mark.parametrize("method", METHODS)
def test_numbers_that_cannot_be_squared_are_refused_by_name(method: str, name: str) -> None:
    sources = stack([pairs(1)[0], BEYOND[name]])
    with pytest.raises(
        gm.GamMergeError,
        match=r"adapter-1: module w has numbers above 1e\+60 in the product; leave",
    ):
        gm.merge(sources, method=method)
    with pytest.raises(gm.GamMergeError, match="adapter-1: module w has numbers above"):
        gm.compare(sources)
    found = gm.inspect(sources[1])
    assert found.broken == ("w",)
    assert found.modules[0].broken == "the product"
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("alpha", [1e300, 1e-300])
def test_a_scale_is_a_number_too(alpha: float) -> None:
    sources = [adapter({"w": pair}, scale=alpha, source="evil") for pair in pairs(2)]
    if alpha > 1:
        with pytest.raises(gm.GamMergeError, match="evil: module w has numbers above"):
            gm.merge(sources)
    else:
        sound(gm.merge(sources))


@pytest.mark.parametrize("method", METHODS)
def test_many_and_equal(method: str) -> None:
    """N = 64: no method breaks, and equal adapters have the mean that they are."""
    (pair,) = pairs(1, torch.float32)
    sound(gm.merge(stack(pairs(64, torch.float32, r=2)), method=method))
    found = sound(gm.merge(stack([pair] * 64), method=method))
    if method in ("mean", "gam", "consensus"):
        assert relative(delta(found.adapter), pair[0].double() @ pair[1].double()) < 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("m", "n", "r"), [(14, 11, 1), (1, 1, 1), (1, 11, 1), (5, 4, 40), (1, 1, 8)]
)
def test_ranks(method: str, m: int, n: int, r: int) -> None:
    """Of one, and of more than there are rows or columns."""
    generator = torch.Generator().manual_seed(1)
    some = [random_factors(generator, m, n, r, torch.float32) for _ in range(3)]
    found = sound(gm.merge(stack(some), method=method))
    if method == "mean":
        rank = min(m, n)
        expected = sum((b.double() @ a.double() for b, a in some), torch.zeros(m, n).double()) / 3
        u, s, vt = torch.linalg.svd(expected, full_matrices=False)
        assert relative(delta(found.adapter), u[:, :rank] * s[:rank] @ vt[:rank]) < 1e-5 or r < rank


def graded(generator: torch.Generator, exponent: int) -> Pair:
    """Factors of which B has singular values from 1 down to 10^-exponent."""
    b, a = random_factors(generator, 14, 11, 4)
    u, _, vt = torch.linalg.svd(b, full_matrices=False)
    return u * torch.logspace(0, -exponent, 4, dtype=torch.float64) @ vt, a


@pytest.mark.parametrize("exponent", [6, 9])
def test_condition(exponent: int) -> None:
    """The smallest directions count in full in gam, however small."""
    generator = torch.Generator().manual_seed(2)
    some = [graded(generator, exponent) for _ in range(3)]
    expected = dense.gam([b @ a for b, a in some], [1 / 3] * 3)
    # a perturbation eps of the delta turns its smallest direction by eps * cond: that of the oracle too
    assert (
        relative(delta(sound(gm.merge(stack(some), method="gam")).adapter), expected)
        < 1e-15 * 10**exponent
    )


@pytest.mark.parametrize("method", ["gam", "mean", "consensus", "ties@core"])
def test_condition_of_1e12(method: str) -> None:
    """Beyond what a dense oracle tells apart from rounding: equal ones are what they are, and a mean is a sum."""
    generator = torch.Generator().manual_seed(2)
    one, other = graded(generator, 12), graded(generator, 12)
    found = sound(gm.merge(stack([one, one]), method=method))
    # a cut to the rank of the output works on Gram matrices, which have half of the digits
    assert relative(delta(found.adapter), one[0] @ one[1]) < 1e-7 or method == "ties@core"
    assert found.report.modules[0].ranks == (4, 4)
    found = sound(gm.merge(stack([one, other]), method=method, rank=8))
    if method == "mean":
        assert relative(delta(found.adapter), mean([one, other])) < 1e-12


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0, 1e3, 1e6, 1e12, 1e35, 1e55])
def test_what_is_written_is_finite_and_right_or_nothing_is(
    size: float, dtype: str, tmp_path: Path
) -> None:
    factors = torch.full((2, 1), size, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    source, out = write_adapter(tmp_path / "source", {"w": factors}), tmp_path / "out"
    largest = {"fp16": 65504.0, "bf16": 3.3895e38, "fp32": 3.4028e38}[dtype]
    if size > largest**2:
        with pytest.raises(gm.GamMergeError, match="module w of the merge does not fit into"):
            gm.merge([source], out=out, dtype=dtype)
        assert not out.exists()
        return
    gm.merge([source], out=out, dtype=dtype)
    assert all(
        tensor.isfinite().all() for tensor in load_file(out / "adapter_model.safetensors").values()
    )
    assert relative(gm.load(out).modules["w"].delta() / size, torch.ones(2, 2)) < 0.01


def test_a_factor_that_does_not_fit_is_scaled_and_that_is_told() -> None:
    """Entries of 1e8 fit as products of factors, and as nothing else. A mean without a cut balances none."""
    pair = (
        torch.full((2, 1), 1e4, dtype=torch.float64),
        torch.full((1, 2), 1e4, dtype=torch.float64),
    )
    result = sound(gm.merge(stack([pair, pair]), method="mean", rank=2, dtype="fp16"))
    assert relative(delta(result.adapter), pair[0] @ pair[1]) < 1e-3
    (warning,) = result.report.warnings
    assert "to fit into float16" in warning
