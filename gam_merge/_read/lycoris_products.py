"""The weights of LyCORIS as products b a: their shapes, known from headers, and the factors.

Factors go by role; ``lycoris`` tells what they are. Those of a module are complete here.
Tensor legend: ``m`` out, ``n`` in, ``r`` rank.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

# What a LoKr of two full factors is cut to: it may have the full rank of its module, and would
# become a file of the size of the model. Few LoRAs are trained at more.
MAX_RANK = 256

_FULL = ("lokr_w1", "lokr_w2")


class Form(NamedTuple):
    """The shape of a product b a."""

    m: int
    r: int
    columns: tuple[int, ...]  # n, *kernel
    is_cut: bool = False  # to fewer terms than the weight may have ranks

    @property
    def b(self) -> tuple[int, ...]:
        """The shape of B as plain LoRA stores it."""
        return (self.m, self.r, *(1 for _ in self.columns[1:]))

    @property
    def a(self) -> tuple[int, ...]:
        return (self.r, *self.columns)


class _Product(NamedTuple):
    """A weight as a product."""

    b: Tensor  # (m, r)
    a: Tensor  # (r, n, *kernel)


def form_of(shapes: Mapping[str, tuple[int, ...]]) -> Form:
    """Return the form of the product that factors of these shapes make.

    Raises ValueError if they do not fit together.
    """
    _check(0 not in sum(shapes.values(), ()))
    if "mid" in shapes:
        (m, r, *ones), (s, n, *more) = shapes["up"], shapes["down"]
        _check(prod(ones) == prod(more) == 1)
        return _narrow_form(_with_core(m, r, s, n, shapes["mid"]))
    if "hada_w1_a" in shapes:
        x, y = _form(shapes, "hada_w1", "hada_t1"), _form(shapes, "hada_w2", "hada_t2")
        _check(x.m == y.m and x.columns == y.columns)
        return _narrow_form(Form(x.m, x.r * y.r, x.columns))
    x, y = _form(shapes, "lokr_w1", ""), _form(shapes, "lokr_w2", "lokr_t2")
    _check(len(x.columns) == 1)
    product = Form(x.m * y.m, x.r * y.r, (x.columns[0] * y.columns[0], *y.columns[1:]))
    if product.r > MAX_RANK and shapes.keys() >= set(_FULL):
        return product._replace(r=MAX_RANK, is_cut=True)
    return _narrow_form(product)


def stored_a(roles: Sequence[str], *stored: Tensor) -> Tensor:
    """Return A of the plain LoRA."""
    return _product(roles, stored).a


def stored_b(roles: Sequence[str], *stored: Tensor) -> Tensor:
    """Return B of the plain LoRA."""
    b, a = _product(roles, stored)
    return b.reshape(*b.shape, *(1 for _ in a.shape[2:]))  # (m, r, 1, ...)


def _check(fits: bool) -> None:
    if not fits:
        raise ValueError


def _form(shapes: Mapping[str, tuple[int, ...]], name: str, core: str) -> Form:
    """Return the form of one factor, full or decomposed."""
    if name in shapes:
        m, *columns = shapes[name]
        _check(len(columns) > 0)
        return Form(m, min(m, prod(columns)), tuple(columns))
    if core in shapes:
        (r, m), (s, n) = shapes[f"{name}_a"], shapes[f"{name}_b"]
        return _with_core(m, r, s, n, shapes[core])
    (m, r), (s, n) = shapes[f"{name}_a"], shapes[f"{name}_b"]
    _check(r == s)
    return Form(m, r, (n,))


def _with_core(m: int, r: int, s: int, n: int, core: tuple[int, ...]) -> Form:
    """Return the form of (m, r), a core (r, s, *kernel) and (s, n)."""
    _check(len(core) > 2 and core[:2] == (r, s))
    return Form(m, r, (n, *core[2:]))


def _narrow_form(form: Form) -> Form:
    return form._replace(r=min(form.r, form.m, prod(form.columns)))


def _product(roles: Sequence[str], stored: Sequence[Tensor]) -> _Product:
    """Return the weight that the factors of a module make, without its scale."""
    form = form_of({role: tuple(x.shape) for role, x in zip(roles, stored, strict=True)})
    parts = {role: _wide(x) for role, x in zip(roles, stored, strict=True)}
    if form.is_cut:
        return _largest_terms(parts["lokr_w1"], parts["lokr_w2"])
    if "mid" in parts:
        up, down = parts["up"].flatten(1), parts["down"].flatten(1)  # (m, r), (r, n)
        return _narrow(_tucker(up, down, parts["mid"]))
    if "hada_w1_a" in parts:
        x, y = _factor(parts, "hada_w1", "hada_t1"), _factor(parts, "hada_w2", "hada_t2")
        return _narrow(_hadamard(x, y))
    x, y = _factor(parts, "lokr_w1", ""), _factor(parts, "lokr_w2", "lokr_t2")
    return _narrow(_kronecker(x, y))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _factor(parts: Mapping[str, Tensor], name: str, core: str) -> _Product:
    """Return one factor as a product, whether it is full or decomposed."""
    if name in parts:
        return _times_one(parts[name])
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    return _tucker(a.mT, b, parts[core]) if core in parts else _Product(a, b)


def _tucker(left: Tensor, right: Tensor, core: Tensor) -> _Product:
    """Return the product of (m, r), a core (r, r, *kernel) and (r, n)."""
    return _Product(left, torch.einsum("ij...,jn->in...", core, right))


def _times_one(weight: Tensor) -> _Product:
    """Return a weight (m, n, *kernel) times the identity, on the side where that is smaller."""
    m, *columns = weight.shape
    flat = weight.flatten(1)
    if m <= flat.shape[1]:
        return _Product(torch.eye(m, dtype=weight.dtype), weight)
    return _Product(flat, torch.eye(flat.shape[1], dtype=weight.dtype).unflatten(1, columns))


def _hadamard(x: _Product, y: _Product) -> _Product:
    """Return the entrywise product: each term of the one times each of the other."""
    b = (x.b[:, :, None] * y.b[:, None]).flatten(1)  # (m, r r')
    a = (x.a[:, None] * y.a).flatten(0, 1)  # (r r', n, *kernel)
    return _Product(b, a)


def _kronecker(x: _Product, y: _Product) -> _Product:
    """Return the Kronecker product of a matrix and of a weight that may have a kernel."""
    matrix = x.a.reshape(*x.a.shape, *(1 for _ in y.a.shape[2:]))  # (r, n, 1, ...)
    b, a = y.b.contiguous(), y.a.contiguous()  # as kron needs them
    return _Product(torch.kron(x.b.contiguous(), b), torch.kron(matrix, a))


def _narrow(product: _Product) -> _Product:
    """Return a product of no more terms than a matrix of its shape has ranks."""
    b, a = product
    flat = a.flatten(1)
    if len(a) <= min(b.shape[0], flat.shape[1]):
        return product
    return _times_one((b @ flat).reshape(b.shape[0], *a.shape[1:]))


def _largest_terms(w1: Tensor, w2: Tensor) -> _Product:
    """Return the best product of rank ``MAX_RANK`` for the Kronecker product of two full factors.

    Its singular values are the products of theirs, and its singular vectors Kronecker products.
    """
    u1, s1, v1 = torch.linalg.svd(w1.double(), full_matrices=False)
    u2, s2, v2 = torch.linalg.svd(w2.flatten(1).double(), full_matrices=False)
    s = torch.outer(s1, s2).flatten()
    order = s.argsort(descending=True, stable=True)[:MAX_RANK]
    i, j = order // len(s2), order % len(s2)
    root = s[order].sqrt()
    b = (u1[:, None, i] * u2[:, j]).flatten(0, 1) * root  # (m, r)
    a = (v1[i, :, None] * v2[j, None]).flatten(1) * root[:, None]  # (r, n * kernel)
    columns = (w1.shape[1] * w2.shape[1], *w2.shape[2:])
    return _Product(b.to(w1.dtype), a.unflatten(1, columns).to(w1.dtype))
