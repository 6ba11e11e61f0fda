"""The walk hands out every module once, whole, and refuses what is not finite."""

from math import nan

import helpers
import pytest
import torch

from gam_merge import GamMergeError
from gam_merge._lineup.lineup import line_up
from gam_merge._run import reader
from gam_merge._run import walk as walking
from gam_merge._run.walk import walk

CPU = torch.device("cpu")


@pytest.fixture
def adapters(generator: torch.Generator) -> list[helpers.Adapter]:
    """Two adapters of five equal modules and one of another shape, which the second lacks."""
    shapes = {f"layers.{i}.q": (12, 9, 3) for i in range(5)} | {"head": (7, 5, 2)}
    factors = [
        {name: helpers.random_factors(generator, *shape) for name, shape in shapes.items()}
        for _ in range(2)
    ]
    del factors[1]["head"]
    return [
        helpers.adapter(pairs, scale=2.0, source=f"adapter-{i}") for i, pairs in enumerate(factors)
    ]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("chunk_bytes", [1, 64 << 20])
def test_every_module_once(adapters, monkeypatch, chunk_bytes):
    monkeypatch.setattr(walking, "_CHUNK_BYTES", chunk_bytes)
    seen = {}
    for bucket in walk(line_up(adapters), lambda bucket: bucket, device=CPU):
        for i, x in zip(bucket.adapters, bucket.deltas, strict=True):
            dense = x.b64 @ x.u @ x.core @ (x.a64 @ x.v).mT
            for name, delta in zip(bucket.names, dense, strict=True):
                assert (name, i) not in seen
                seen[name, i] = delta
    assert seen.keys() == {
        (name, i) for i, adapter in enumerate(adapters) for name in adapter.modules
    }
    for (name, i), delta in seen.items():
        assert helpers.relative(delta, adapters[i].modules[name].delta()) < 1e-13


def test_zero_deltas_are_left_out_of_the_bucket(generator):
    b, a = helpers.random_factors(generator, 6, 5, 2)
    (bucket,) = walk(
        line_up(helpers.stack([(b, a), (torch.zeros_like(b), a)])),
        lambda bucket: bucket,
        device=CPU,
    )
    assert bucket.adapters == (0,)
    assert bucket.shape == (6, 5)


def test_inner_products_of_all_at_once_are_those_of_pairs(generator, monkeypatch):
    """Of modules that are well conditioned, that lack an adapter, and that need a basis of their own."""
    pairs = [[helpers.random_factors(generator, 40, 30, r) for r in (2, 3, 4)] for _ in range(4)]
    pairs[1][1] = torch.zeros(40, 3), pairs[1][1][1]
    pairs[2][0][0][:, 1] = pairs[2][0][0][:, 0]
    adapters = [
        helpers.adapter(
            {f"w{j}": (b.float(), a.float()) for j, (b, a) in enumerate(own)}, source=f"adapter-{i}"
        )
        for i, own in enumerate(zip(*pairs, strict=True))
    ]

    def inner(columns: int) -> dict[str, list[torch.Tensor]]:
        monkeypatch.setattr(reader, "_JOINT", columns)
        found = {}
        for bucket in walk(line_up(adapters), lambda bucket: bucket, device=CPU):
            assert (bucket.grams is not None) == (columns > 0 and not bucket.fell_back)
            everyone = range(len(bucket.deltas))
            parts = [part for i in everyone for j in everyone for part in bucket.cross(i, j)]
            found |= {name: [part[row] for part in parts] for row, name in enumerate(bucket.names)}
        return found

    joint, apart = inner(1 << 20), inner(0)
    count = {"w0": 18, "w1": 8, "w2": 18, "w3": 18}  # of all pairs, on two sides
    assert {name: len(parts) for name, parts in joint.items()} == count
    for name, parts in joint.items():
        for one, other in zip(parts, apart[name], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
def test_not_finite_names_adapter_module_and_factor(generator, side):
    b, a = helpers.random_factors(generator, 6, 5, 2)
    broken = [b.clone(), a.clone()]
    broken[side == "lora_A"][1, 1] = nan
    adapters = helpers.stack([(b, a), (broken[0], broken[1])])
    with pytest.raises(GamMergeError, match=rf"adapter-1: module w has NaN or Inf in {side}"):
        list(walk(line_up(adapters), lambda bucket: None, device=CPU))
