"""Worlds: how adapters come from one signal, and what each has besides it.

A world makes the deltas of ``count`` adapters of rank 8 and the signal that a merge should bring
back. ``a`` is the size of what is private: the norm of that part for a signal of norm 1, or the
size of the noise in a factor for one with entries of size 1.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

SIDE, RANK = 96, 8

World = Callable[[torch.Generator, int, float], tuple[list[Tensor], Tensor]]


def _basis(generator: torch.Generator, columns: int) -> Tensor:
    """Return a random orthonormal basis: (SIDE, columns)."""
    x = torch.randn(SIDE, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(x)[0]


def _normal(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def _private(rank: int, *, one_a: bool) -> World:
    """Make a signal of a low rank, and private directions in the rest of the rank."""

    def world(generator: torch.Generator, count: int, a: float) -> tuple[list[Tensor], Tensor]:
        v = _basis(generator, RANK)  # row space, where all adapters have the same A
        signal = _basis(generator, rank) @ v[:, :rank].T / rank**0.5
        deltas: list[Tensor] = []
        for _ in range(count):
            rows = v[:, rank:] if one_a else _basis(generator, RANK - rank)
            private = _basis(generator, RANK - rank) @ rows.T / (RANK - rank) ** 0.5
            deltas.append(signal + a * private)
        return deltas, signal

    return world


def _noise_in_b(rank: int) -> World:
    """Make adapters with one A, and noise in every column of B."""

    def world(generator: torch.Generator, count: int, a: float) -> tuple[list[Tensor], Tensor]:
        v = _basis(generator, RANK)
        b = _normal(generator, SIDE, rank) @ _normal(generator, rank, RANK) / rank**0.5
        deltas = [(b + a * _normal(generator, SIDE, RANK)) @ v.T for _ in range(count)]
        return deltas, b @ v.T

    return world


def _separate_a(generator: torch.Generator, count: int, a: float) -> tuple[list[Tensor], Tensor]:
    """Make one step of LoRA from a random A of its own each: a gradient of rank 2, G A^T A."""
    signal = _basis(generator, 2) @ _basis(generator, 2).T / 2**0.5
    deltas: list[Tensor] = []
    for _ in range(count):
        private = _basis(generator, 2) @ _basis(generator, 2).T / 2**0.5
        v = _basis(generator, RANK)
        deltas.append((signal + a * private) @ v @ v.T)
    return deltas, signal


def _tangent(generator: torch.Generator, count: int, a: float) -> tuple[list[Tensor], Tensor]:
    """Make noise in both factors of a signal of full rank with a falling spectrum."""
    u, v = _basis(generator, RANK), _basis(generator, RANK)
    s = torch.diag(2.0 ** -torch.arange(RANK, dtype=torch.float64))
    deltas: list[Tensor] = []
    for _ in range(count):
        noise_u, noise_v = _normal(generator, SIDE, RANK), _normal(generator, SIDE, RANK)
        deltas.append((u + a * noise_u / SIDE**0.5) @ s @ (v + a * noise_v / SIDE**0.5).T)
    return deltas, u @ s @ v.T


def _broken(generator: torch.Generator, count: int, a: float) -> tuple[list[Tensor], Tensor]:
    """Make all adapters but the last with little noise; the last is noise of norm 3 a."""
    deltas, signal = _private(2, one_a=False)(generator, count, 0.3)
    deltas[-1] = 3 * a * _basis(generator, RANK) @ _basis(generator, RANK).T / RANK**0.5
    return deltas, signal


WORLDS: Mapping[str, World] = {
    "signal of rank 2, private directions": _private(2, one_a=False),
    "signal of rank 4, private directions": _private(4, one_a=False),
    "the same with one A, rank 2": _private(2, one_a=True),
    "one A, noise in B, signal of rank 2": _noise_in_b(2),
    "one A, noise in B, signal of full rank": _noise_in_b(RANK),
    "one step each, from separate A": _separate_a,
    "noise in both factors, falling spectrum": _tangent,
    "one broken adapter among good ones": _broken,
}
