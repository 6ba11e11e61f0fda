"""Leading singular triplets from sketches, against the dense decomposition."""

import pytest
import torch

from gam_kernels import Leading, leading_svd

N = 120
SPECTRA = {
    "noise": torch.randn(N, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    .svd()
    .S,
    "slow": torch.arange(1, N + 1, dtype=torch.float64).rsqrt(),
    "fast": 0.9 ** torch.arange(N, dtype=torch.float64),
    "step": torch.where(torch.arange(N) < 20, 1.0, 1e-3).double(),
    "equal": torch.ones(N, dtype=torch.float64),
    "low rank": torch.where(torch.arange(N) < 5, 1.0, 0.0).double(),
    "zero": torch.zeros(N, dtype=torch.float64),
}


def matrix(s: torch.Tensor, m: int, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    u, v = (
        torch.linalg.qr(torch.randn(d, len(s), generator=generator, dtype=torch.float64)).Q
        for d in (m, n)
    )
    return u * s @ v.T


def leading(x: torch.Tensor, rank: int) -> Leading:
    """In blocks of 37 rows."""
    generator = torch.Generator().manual_seed(0)
    return leading_svd(
        lambda: x.split(37), tuple(x.shape), rank, generator=generator, oversampling=rank + 16
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(200, 130), (130, 200)])
@pytest.mark.parametrize("rank", [1, 8, 40])
@pytest.mark.parametrize("name", SPECTRA)
def test_error_is_nearly_the_least(name, rank, shape, dtype):
    s = SPECTRA[name]
    x = matrix(s, *shape)
    u, leading_s, v, energy = leading(x.to(dtype), rank)
    eps = torch.finfo(dtype).eps
    for q in (u.double(), v.double()):
        assert (q.T @ q - torch.eye(rank)).abs().max() < 100 * eps
    error, least = (x - u.double() * leading_s @ v.double().T).norm(), s[rank:].norm()
    assert float(energy) == pytest.approx(float(s.square().sum()), rel=10 * eps)
    assert error <= 1.01 * least + 10 * eps * s.norm()
    assert error**2 == pytest.approx(
        float(energy - leading_s.norm() ** 2), abs=float(100 * eps * s.norm() ** 2)
    )
    assert (leading_s[:-1] >= leading_s[1:]).all()


def test_rank_beyond_the_sides_is_the_whole_matrix():
    x = matrix(SPECTRA["slow"][:30], 40, 30)
    u, s, v, _ = leading(x, 64)
    assert s.shape == (30,)
    assert torch.allclose(u * s @ v.T, x, atol=1e-13)


def test_the_same_generator_gives_the_same_result():
    x = matrix(SPECTRA["noise"], 130, 130)
    first, second = leading(x, 8), leading(x, 8)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
