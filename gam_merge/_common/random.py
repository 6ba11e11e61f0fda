"""Random numbers that depend on a seed and on names alone: on no order, no process, no machine."""

from hashlib import blake2b

import torch


def generator(seed: int, *names: str) -> torch.Generator:
    """A stream of its own for each seed and names."""
    key = "\0".join((str(seed), *names)).encode()
    return torch.Generator().manual_seed(
        int.from_bytes(blake2b(key, digest_size=8).digest(), "little") >> 1
    )
