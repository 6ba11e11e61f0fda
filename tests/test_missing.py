"""A module that some adapters lack, or where their delta is zero, counts as zero there."""

import dense
import pytest
import torch
from helpers import adapter, delta, random_factors, relative
from torch import Tensor

import gam_merge as gm

METHODS = ("gam", "mean")
Pair = tuple[Tensor, Tensor]


def three(*, second: bool) -> list[gm.Adapter]:
    """Adapters of modules x and y; the second has no delta at y: the module is not there, or B is zero."""
    generator = torch.Generator().manual_seed(0)
    factors: list[dict[str, Pair]] = [
        {name: random_factors(generator, 12, 9, r) for name in ("x", "y")} for r in (3, 4, 2)
    ]
    b, a = factors[1].pop("y")
    if second:
        factors[1]["y"] = (torch.zeros_like(b), a)
    return [adapter(f, source=f"adapter-{i}") for i, f in enumerate(factors)]


WEIGHTS = [0.5, 0.3, 0.2]


SHARES = {
    "zero": 0.7,
    "skip": 1.0,
}  # missing -> the part of all weight that the result has where the second is not


@pytest.mark.parametrize("zero", [False, True], ids=["missing", "zero"])
@pytest.mark.parametrize("missing", SHARES)
def test_mean_is_the_exact_mean(missing: str, zero: bool) -> None:
    adapters = three(second=zero)
    result = gm.merge(adapters, method="mean", weights=WEIGHTS, rank=9, missing=missing)
    present = 0.5 * adapters[0].modules["y"].delta() + 0.2 * adapters[2].modules["y"].delta()
    assert relative(delta(result.adapter, "y"), SHARES[missing] / 0.7 * present) < 1e-9


@pytest.mark.parametrize("zero", [False, True], ids=["missing", "zero"])
@pytest.mark.parametrize("missing", SHARES)
@pytest.mark.parametrize("anchor", [0, 1, 2])
def test_gam_merges_the_others_and_keeps_their_share(missing: str, zero: bool, anchor: int) -> None:
    adapters = three(second=zero)
    result = gm.merge(adapters, method="gam", weights=WEIGHTS, anchor=anchor, missing=missing)
    present = [adapters[0].modules["y"].delta(), adapters[2].modules["y"].delta()]
    expected = SHARES[missing] * dense.gam(
        present, [0.5 / 0.7, 0.2 / 0.7]
    )  # the first has the larger rank
    assert relative(delta(result.adapter, "y"), expected) < 1e-9
    everywhere = dense.gam([a.modules["x"].delta() for a in adapters], WEIGHTS, anchor)
    assert relative(delta(result.adapter, "x"), everywhere) < 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("zero", [False, True], ids=["missing", "zero"])
def test_report_tells(method: str, zero: bool) -> None:
    report = gm.merge(three(second=zero), method=method, weights=WEIGHTS).report
    x, y = report.modules
    assert (x.ranks, y.ranks) == ((3, 4, 2), (3, 0, 2))
    assert y.norms[1] == y.inners[1] == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_adapters_of_weight_zero_take_no_part(method: str) -> None:
    adapters = three(second=False)
    adapters[1].modules["z"] = adapters[1].modules["x"]  # type: ignore[index]  # nobody else has it
    result = gm.merge(adapters, method=method, weights=[1.0, 0.0, 1.0])
    expected = gm.merge([adapters[0], adapters[2]], method=method)
    assert set(result.adapter.modules) == {"x", "y"}
    assert result.report.sources == ("adapter-0", "adapter-2")
    for name in ("x", "y"):
        assert torch.equal(delta(result.adapter, name), delta(expected.adapter, name))


@pytest.mark.parametrize("method", METHODS)
def test_module_that_is_zero_everywhere_stays_zero(method: str) -> None:
    generator = torch.Generator().manual_seed(1)
    b, a = random_factors(generator, 12, 9, 3)
    adapters = [adapter({"w": (b, a), "z": (0 * b, a)}, source=str(i)) for i in range(2)]
    result = gm.merge(adapters, method=method)
    assert not delta(result.adapter, "z").any()
    assert relative(delta(result.adapter, "w"), b @ a) < 1e-9
    assert result.report.warnings == {"zero in every adapter": ("z",)}
