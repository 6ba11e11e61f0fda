"""Polar factors, orthogonal Procrustes and principal angles of small stacks.

``L`` modules, ``k`` and ``l`` dimensions of two subspaces.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Polar(NamedTuple):
    """The orthogonal factor of a polar decomposition and the singular values that it flattened."""

    rotation: Tensor  # (L, k, l), orthonormal rows if k <= l, orthonormal columns if k >= l
    cosines: Tensor  # (L, min(k, l)), descending


def polar(x: Tensor) -> Polar:
    """Return the nearest matrices with orthonormal rows or columns.

    Source: Higham, Functions of Matrices (2008), chapter 8.

    x: (L, k, l) float64 -> rotation (L, k, l), singular values (L, min(k, l)). The factor is unique
    only if no singular value is zero; otherwise one of the nearest is returned, still orthonormal.
    """
    p, s, qt = torch.linalg.svd(x, full_matrices=False)
    return Polar(p @ qt, s)


def procrustes(cross: Tensor) -> Polar:
    """Return rotations that align bases to reference bases: argmin over R of |Q R - Q_ref|_F.

    Source: Schoenemann, Psychometrika 31 (1966).

    cross: (L, k, l) = Q^T Q_ref for orthonormal Q (L, m, k), Q_ref (L, m, l), k <= l. R has
    orthonormal rows, so a product formed with Q R and R^T core keeps its value. ``cosines`` are
    those of the principal angles; where one is zero R is not unique.

    Raises ValueError if k > l: no such R keeps the product.
    """
    if cross.shape[-2] > cross.shape[-1]:
        raise ValueError(
            f"cannot align rank {cross.shape[-2]} to rank {cross.shape[-1]} without cutting it down"
        )
    return polar(cross)


def principal_cosines(cross: Tensor) -> Tensor:
    """Return the cosines of the principal angles between subspaces.

    Source: Bjoerck and Golub, Math. Comp. 27 (1973).

    cross: (L, k, l) = Q_1^T Q_2 of orthonormal bases -> (L, min(k, l)), descending, clipped to 1.
    """
    return torch.linalg.svdvals(cross).clamp(max=1.0)
