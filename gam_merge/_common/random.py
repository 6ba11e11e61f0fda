"""Random numbers that depend on a seed and names alone, not on order, process or machine."""

from hashlib import blake2b

import torch


def generator(seed: int, *names: str) -> torch.Generator:
    """Return a generator that is different for each seed and sequence of names."""
    key = "\0".join((str(seed), *names)).encode()
    return torch.Generator().manual_seed(
        int.from_bytes(blake2b(key, digest_size=8).digest(), "little") >> 1
    )
