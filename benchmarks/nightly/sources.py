"""Adapters that change while they are merged: an error of one line, and nothing is written."""

import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from children import in_child
from helpers import random_factors, write_adapter

import gam_merge as gm
from benchmarks.nightly.trial import Outcome, counted

WEIGHTS = "adapter_model.safetensors"


def _truncate(file: Path, draw: random.Random) -> None:
    os.truncate(file, draw.randrange(file.stat().st_size))


def _delete(file: Path, draw: random.Random) -> None:
    file.unlink()


def _replace(file: Path, draw: random.Random) -> None:
    os.replace(file.with_name("other"), file)


def _write_into(file: Path, draw: random.Random) -> None:
    with open(file, "r+b") as stream:
        stream.seek(draw.randrange(file.stat().st_size - 8))
        stream.write(draw.randbytes(8))


def _shrink_and_grow(file: Path, draw: random.Random) -> None:
    size = file.stat().st_size
    _truncate(file, draw)
    os.truncate(file, size)


_CHANGES: tuple[Callable[[Path, random.Random], None], ...] = (
    _truncate,
    _delete,
    _replace,
    _write_into,
    _shrink_and_grow,
)


def changes(folder: Path, cases: int) -> Outcome:
    """Change one file after some modules. A process that dies of it is noticed by its exit code."""
    draw, lost, counts = random.Random(0), list[str](), Counter[str]()
    for case in range(cases):
        change, after, seed = _CHANGES[case % len(_CHANGES)], draw.random(), draw.randrange(1 << 30)
        home = folder / str(case)
        code = in_child(_merge, home, change, after, seed)
        said = f"{change.__name__.strip('_')} after {after:.0%}"
        if code != 0:
            lost.append(f"{said}: exit code {code}")
        elif sorted(os.listdir(home)) != ["a", "b"]:
            lost.append(f"{said}: left {sorted(os.listdir(home))}")
        counts["refused" if code == 0 else "not refused"] += 1
    return Outcome(lost, counted(counts))


def _merge(
    home: Path, change: Callable[[Path, random.Random], None], after: float, seed: int
) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for i in range(24):  # no two shapes are equal: each module is read on its own
        factors[f"layers.{i}.q"] = random_factors(generator, 40 + i, 30, 4, torch.float32)
    sources = [write_adapter(home / name, factors) for name in "ab"]
    file = sources[1] / WEIGHTS
    file.with_name("other").write_bytes((sources[0] / WEIGHTS).read_bytes())
    left = [change]

    def progress(done: int, total: int) -> None:
        if left and done >= after * total:
            left.pop()(file, random.Random(seed))

    try:
        gm.merge(sources, out=home / "out", progress=progress)
    except gm.GamMergeError as error:
        sys.exit(0 if str(error).startswith(str(file)) and "\n" not in str(error) else str(error))
    sys.exit("no error")
