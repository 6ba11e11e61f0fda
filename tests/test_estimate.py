"""What a merge will take is known without reading a tensor, and grows with the work."""

import helpers
import pytest
import torch

import gam_merge as gm
from gam_merge._common.tensors import PromisedTensor


def unreadable(layers: int, *, size: int = 96, rank: int = 8) -> gm.Adapter:
    """An adapter whose tensors cannot be read."""
    a, b = (
        PromisedTensor((rank, size), torch.bfloat16),
        PromisedTensor((size, rank), torch.bfloat16),
    )
    return gm.Adapter(
        "promised",
        {f"layers.{i}.q": gm.LoraModule(f"layers.{i}.q", a, b, 1.0) for i in range(layers)},
    )


@pytest.mark.parametrize("method", ["gam", "mean", "iso_c", "ties"])
def test_no_tensor_is_read(method):
    found = gm.plan([unreadable(3)] * 2, method=method).estimate()
    assert 0 < found.seconds < 5
    assert found.nbytes > 0


def test_it_grows_with_the_work():
    """Seconds with the number of modules, up to what other work on the machine does to a clock; memory with width."""
    few, many = (gm.plan([unreadable(n, size=512)] * 3).estimate() for n in (500, 10_000))
    assert 2 < many.seconds / few.seconds < 200
    assert many.nbytes == few.nbytes
    narrow, wide = (gm.plan([unreadable(1, size=size)] * 3).estimate() for size in (1_000, 10_000))
    assert wide.nbytes == 10 * narrow.nbytes


def test_modules_of_many_kinds_do_not_take_forever():
    """Every module of a shape of its own: only some are rehearsed."""
    generator = torch.Generator().manual_seed(0)
    factors = {f"w{i}": helpers.random_factors(generator, 20 + i, 10, 2) for i in range(300)}
    found = gm.plan([helpers.adapter(factors)] * 2).estimate()
    assert 0 < found.seconds < 10
