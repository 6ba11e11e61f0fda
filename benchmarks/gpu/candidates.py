"""The routines that could serve for one operation of the kernels: seconds and errors on stacks.

``L`` matrices, ``m`` rows, ``k`` columns.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor

Routine = Callable[[Tensor], tuple[Tensor, ...]]
Size = tuple[int, int, int]  # L, m, k
_EXACT = 1e-12
_SPENT = 0.1  # seconds at least, per routine and size
_SQUARES = ((64, 16), (64, 32), (64, 48), (64, 64), (32, 128), (16, 192), (16, 256), (4, 768))
_TALL = (
    *((64, 4096, 16), (16, 4096, 64), (4, 4096, 256)),
    *((16, 28672, 16), (4, 28672, 64), (2, 28672, 256)),
)


@dataclass(frozen=True)
class Operation:
    """What the kernels need done.

    Attributes:
        name: what it is called in the tables.
        decided_in: where the library takes its routine, the first of the routines.
        make: gives a stack of a size, from a generator.
        routines: by name; one per way to do it.
        error: of a stack and of what a routine makes of it.
        exact: the largest error of a routine that may be chosen.
        sizes: of the stacks that are measured.
    """

    name: str
    decided_in: str
    make: Callable[[Size, torch.Generator], Tensor]
    routines: Mapping[str, Routine]
    error: Callable[[Tensor, tuple[Tensor, ...]], Tensor]
    exact: float
    sizes: tuple[Size, ...]


def rows(device: torch.device, *, toy: bool) -> Iterator[dict[str, Any]]:
    """Yield a row per operation, size and routine."""
    for operation in OPERATIONS:
        for size in TOY if toy else operation.sizes:
            x = operation.make(size, torch.Generator().manual_seed(0)).to(device)
            for name, routine in operation.routines.items():
                if device.type == "cuda" or name not in _CUDA_ALONE:
                    what = {"what": "routine", "operation": operation.name, "size": text(size)}
                    yield what | {"routine": name} | _measured(operation, routine, x)


def text(size: Size) -> str:
    return " x ".join(map(str, size))


def _measured(operation: Operation, routine: Routine, x: Tensor) -> dict[str, Any]:
    try:
        result = routine(x)
        seconds = _best_seconds(partial(routine, x), x.device)
    except RuntimeError as error:  # LinAlgError is one, and a lack of memory
        return {"failed": str(error).splitlines()[0]}
    error = float(operation.error(x, result))
    return {"seconds": seconds, "error": error} if isfinite(error) else {"failed": "not finite"}


def _best_seconds(job: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of as many runs as fit into the time."""
    _wait(device)
    best, end = float("inf"), time.perf_counter() + _SPENT
    while (start := time.perf_counter()) < end:
        job()
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def _wait(device: torch.device) -> None:
    """Wait for what a GPU was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _looped(routine: Routine, x: Tensor) -> tuple[Tensor, ...]:
    """Do it matrix by matrix."""
    results = [routine(one) for one in x]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def _on_cpu(routine: Routine, x: Tensor) -> tuple[Tensor, ...]:
    """Move the stack to the CPU and what it gives back."""
    return tuple(part.to(x.device) for part in routine(x.cpu()))


def _svd(x: Tensor, driver: str | None = None) -> tuple[Tensor, ...]:
    return tuple(torch.linalg.svd(x, full_matrices=False, driver=driver))


def _eigh_by_svd(x: Tensor) -> tuple[Tensor, ...]:
    u, s, _ = torch.linalg.svd(x)
    return s, u


def _cholesky(x: Tensor) -> tuple[Tensor, ...]:
    """Return an orthonormal basis by the Cholesky factor of the Gram matrix."""
    lower, _ = torch.linalg.cholesky_ex(x.mT @ x)
    return (torch.linalg.solve_triangular(lower.mT, x, upper=True, left=False),)


def _cholesky_twice(x: Tensor) -> tuple[Tensor, ...]:
    return _cholesky(*_cholesky(x))


def _graded(size: Size, generator: torch.Generator, digits: float) -> Tensor:
    """Return (L, m, k) in float64 with singular values from 1 down to 10^-digits."""
    count, m, k = size
    tall = torch.randn(count, m, k, generator=generator, dtype=torch.float64)
    square = torch.randn(count, k, k, generator=generator, dtype=torch.float64)
    s = torch.logspace(0, -digits, k, dtype=torch.float64)
    return (torch.linalg.qr(tall).Q * s) @ torch.linalg.qr(square).Q.mT


def _gram_of_graded(size: Size, generator: torch.Generator) -> Tensor:
    x = _graded(size, generator, 5.0)
    return x.mT @ x


def _single(size: Size, generator: torch.Generator) -> Tensor:
    return _graded(size, generator, 2.0).float()


def _relative(x: Tensor, y: Tensor) -> Tensor:
    """Return the largest |x - y| / |y| of a stack."""
    return (torch.linalg.matrix_norm(x - y) / torch.linalg.matrix_norm(y)).amax()


def _skew(q: Tensor) -> Tensor:
    """Return how far columns are from orthonormal: the largest |Q^T Q - I| of a stack."""
    eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    return torch.linalg.matrix_norm(q.mT @ q - eye).amax()


def _svd_error(x: Tensor, result: tuple[Tensor, ...]) -> Tensor:
    u, s, vt = result
    back = (u * s.unsqueeze(-2)) @ vt
    return torch.stack([_relative(back, x), _skew(u), _skew(vt.mT)]).amax()


def _eigh_error(x: Tensor, result: tuple[Tensor, ...]) -> Tensor:
    values, vectors = result
    back = (vectors * values.unsqueeze(-2)) @ vectors.mT
    return torch.stack([_relative(back, x), _skew(vectors)]).amax()


def _basis_error(x: Tensor, result: tuple[Tensor, ...]) -> Tensor:
    q = result[0]
    return torch.stack([_relative(q @ (q.mT @ x), x), _skew(q)]).amax()


def _gram_error(x: Tensor, result: tuple[Tensor, ...]) -> Tensor:
    exact = x.cpu().double()
    return _relative(result[0].cpu(), exact.mT @ exact)


_CUDA_ALONE = ("gesvdj", "gesvd", "gesvda")
_DRIVERS = {name: partial(_svd, driver=name) for name in _CUDA_ALONE}
_SQUARE_SIZES = tuple((count, k, k) for count, k in _SQUARES)
TOY: tuple[Size, ...] = ((3, 8, 8),)

OPERATIONS = (
    Operation(
        "svd of cores",
        "every call of `torch.linalg.svd`, for which `kernels/gam_kernels` would get a function",
        partial(_graded, digits=10.0),
        {
            "default": _svd,
            **_DRIVERS,
            "looped": partial(_looped, _svd),
            "on the CPU": partial(_on_cpu, _svd),
        },
        _svd_error,
        _EXACT,
        _SQUARE_SIZES,
    ),
    Operation(
        "eigh of Gram matrices",
        "every call of `torch.linalg.eigh`, for which `kernels/gam_kernels` would get a function",
        _gram_of_graded,
        {
            "default": torch.linalg.eigh,
            "looped": partial(_looped, torch.linalg.eigh),
            "by svd": _eigh_by_svd,
            "on the CPU": partial(_on_cpu, torch.linalg.eigh),
        },
        _eigh_error,
        _EXACT,
        _SQUARE_SIZES,
    ),
    Operation(
        "basis of factors",
        "`orthonormalize` in `kernels/gam_kernels/_basis.py`",
        partial(_graded, digits=2.0),
        {
            "Cholesky": _cholesky,
            "Cholesky twice": _cholesky_twice,
            "Householder": torch.linalg.qr,
            "Householder, looped": partial(_looped, torch.linalg.qr),
            "Householder, on the CPU": partial(_on_cpu, torch.linalg.qr),
        },
        _basis_error,
        torch.finfo(torch.float32).eps / 8,  # as orthonormalize has it
        _TALL,
    ),
    Operation(
        "Gram matrices of float32",
        "`gram` and `stacked_gram` in `kernels/gam_kernels/_basis.py`",
        _single,
        {
            "in float64": lambda x: (x.double().mT @ x.double(),),
            "in float32": lambda x: ((x.mT @ x).double(),),
        },
        _gram_error,
        _EXACT,
        _TALL,
    ),
)
