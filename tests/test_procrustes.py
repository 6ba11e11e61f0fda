"""Rotations that align bases, and principal angles."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import generators
from torch import Tensor

from gam_kernels import polar, principal_cosines, procrustes


def bases(generator: torch.Generator, m: int, *ranks: int) -> list[Tensor]:
    return [
        torch.linalg.qr(torch.randn(2, m, k, generator=generator, dtype=torch.float64))[0]
        for k in ranks
    ]


@given(generators, st.integers(1, 4), st.integers(0, 3))
def test_aligned_bases_are_the_nearest_and_keep_their_product(
    generator: torch.Generator, k: int, more: int
) -> None:
    q, reference = bases(generator, 9, k, k + more)
    rotation = procrustes(q.mT @ reference).rotation  # (2, k, k + more)
    eye = torch.eye(k, dtype=torch.float64).expand(2, k, k)
    torch.testing.assert_close(
        rotation @ rotation.mT, eye, rtol=0, atol=1e-12
    )  # so (Q R)(R^T core) = Q core
    best = (q @ rotation - reference).square().sum((1, 2))
    others, _ = torch.linalg.qr(
        torch.randn(50, 2, k + more, k, generator=generator, dtype=torch.float64)
    )
    assert (best <= (q @ others.mT - reference).square().sum((2, 3)) + 1e-12).all()


def test_alignment_to_a_smaller_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 3 to rank 2"):
        procrustes(torch.eye(3, 2, dtype=torch.float64).unsqueeze(0))


@given(generators, st.integers(1, 5), st.integers(1, 5))
def test_polar_factor_leaves_a_positive_semidefinite_rest(
    generator: torch.Generator, k: int, width: int
) -> None:
    x = torch.randn(2, k, width, generator=generator, dtype=torch.float64)
    rotation, cosines = polar(x)
    rest = rotation.mT @ x if k >= width else x @ rotation.mT  # the Hermitian factor
    torch.testing.assert_close(rest, rest.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.linalg.eigvalsh(rest).flip(-1), cosines, rtol=0, atol=1e-12)


def test_polar_factor_of_a_singular_matrix_is_orthogonal_all_the_same() -> None:
    for x in (torch.zeros(1, 3, 3), torch.ones(1, 3, 3), torch.zeros(1, 2, 3)):
        rotation, _ = polar(x.double())
        eye = torch.eye(rotation.shape[-2], dtype=torch.float64).unsqueeze(0)
        torch.testing.assert_close(rotation @ rotation.mT, eye, rtol=0, atol=1e-12)


@given(generators, st.integers(1, 4), st.integers(1, 4))
def test_cosines_are_those_of_the_principal_angles(
    generator: torch.Generator, k: int, width: int
) -> None:
    """The eigenvalues of a projector seen from the other space are the squared cosines."""
    p, q = bases(generator, 7, k, width)
    cosines = principal_cosines(p.mT @ q)
    seen = torch.linalg.eigvalsh(p.mT @ q @ q.mT @ p).flip(-1)[:, : min(k, width)]
    torch.testing.assert_close(cosines.square(), seen, rtol=0, atol=1e-12)


def test_cosines_never_exceed_one() -> None:
    (q,) = bases(torch.Generator().manual_seed(0), 30, 6)
    cosines = principal_cosines(q.mT @ q * (1 + 1e-15))
    assert cosines.max() <= 1
    torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=0, atol=1e-12)
