"""Core space: orthonormal bases of all deltas together, exact coordinates in them, whatever the overlap."""

import pytest
import torch
from helpers import adapter, delta, random_factors, relative
from torch import Tensor

import gam_merge as gm
from gam_kernels import span
from gam_merge._deltas.core import by_span, core_of
from gam_merge._lineup.lineup import line_up
from gam_merge._run.walk import walk
from gam_merge.rules import Core

Pair = tuple[Tensor, Tensor]


def drifted(drift: float, dtype: torch.dtype = torch.float64, count: int = 3) -> list[Pair]:
    """Adapters that started from one A and moved away from it by so much; B of their own."""
    generator = torch.Generator().manual_seed(0)
    _, a0 = random_factors(generator, 40, 30, 4)
    pairs = []
    for _ in range(count):
        b, a = random_factors(generator, 40, 30, 4)
        pairs.append((b.to(dtype), (a0 + drift * a).to(dtype)))
    return pairs


def cores(pairs: list[Pair]) -> list[Core]:
    plan = line_up([adapter({"w": pair}, source=str(i)) for i, pair in enumerate(pairs)])
    return [
        core
        for found in walk(
            plan, lambda b: list(map(core_of, by_span(b))), device=torch.device("cpu")
        )
        for core in found
    ]


DRIFTS = [1.0, 1e-2, 1e-5, 1e-9, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("drift", DRIFTS)
def test_bases_are_orthonormal_and_cores_exact(drift: float, dtype: torch.dtype) -> None:
    pairs = drifted(drift, dtype)
    (core,) = cores(pairs)
    q_u = torch.cat([x.b64 for x in core.bucket.deltas], -1) @ core.u  # (1, m, K)
    q_v = core.right_basis()
    bases = torch.linalg.svdvals(torch.cat([torch.linalg.qr(a.double().T)[0] for _, a in pairs], 1))
    assert q_v.shape[-1] == int((bases > 1e-13).sum())
    condition = float(bases[0] / bases[q_v.shape[-1] - 1])
    for q in (q_u, q_v):
        eye = torch.eye(q.shape[-1], dtype=torch.float64)
        assert float((q.mT @ q - eye).abs().max()) < max(1e-11, 1e-14 * condition)
    for (b, a), m in zip(pairs, core.m[0], strict=True):
        assert relative(q_u[0] @ m @ q_v[0].T, b.double() @ a.double()) < 1e-12


@pytest.mark.parametrize(
    "method", ["iso_c", "tsvm", "iso_cts", "consensus", "dc_merge", "wudi", "ties@core", "ctm"]
)
@pytest.mark.parametrize("drift", [1.0, 1e-1, 1e-2])
def test_float32_sources_are_merged_as_exactly_as_float64(method: str, drift: float) -> None:
    """The same numbers in either dtype: products of full size go to float64 where float32 would lose digits."""
    results = []
    for dtype in (torch.float32, torch.float64):
        pairs = [(b.to(dtype), a.to(dtype)) for b, a in drifted(drift, torch.float32)]
        adapters = [adapter({"w": pair}, source=str(i)) for i, pair in enumerate(pairs)]
        results.append(delta(gm.merge(adapters, method=method, dtype="fp64").adapter))
    assert relative(results[0], results[1]) < 1e-5


def test_modules_of_unlike_span_are_taken_apart() -> None:
    """In one bucket: three subspaces in general, two that are equal, all equal."""
    generator = torch.Generator().manual_seed(1)
    pairs = [random_factors(generator, 20, 18, 2) for _ in range(3)]
    factors = [{"general": pairs[i], "two": pairs[max(1, i)], "one": pairs[0]} for i in range(3)]
    plan = line_up([adapter(f, source=str(i)) for i, f in enumerate(factors)])
    assert len(plan.buckets) == 1
    found = {
        core.bucket.names[0]: core.m.shape[-2:]
        for parts in walk(
            plan, lambda b: list(map(core_of, by_span(b))), device=torch.device("cpu")
        )
        for core in parts
    }
    assert found == {"general": (6, 6), "two": (4, 4), "one": (2, 2)}


def test_span_in_a_space_that_is_too_small() -> None:
    """More columns than rows."""
    x = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = span(x.mT @ x, lambda index: x[index], rows=5, eps=1e-7)
    assert found.rank.tolist() == [5, 5, 5]
    q = x @ found.coef[..., :5]
    assert torch.allclose(q.mT @ q, torch.eye(5, dtype=torch.float64).expand(3, 5, 5), atol=1e-12)
    assert torch.allclose(q @ found.coords[:, :5], x, atol=1e-12)
