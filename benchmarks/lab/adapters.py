"""Adapters of a cell: each trained once, kept in a folder, there whole or not at all."""

import random
import shutil
from collections.abc import Callable
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.lab.design import Cell, Settings
from benchmarks.lab.rows import locked
from examples.smollm import split, train

Pairs = list[tuple[str, str]]


@cache
def pairs(tokenizer: Any, family: str, seed: int, settings: Settings) -> tuple[Pairs, Pairs, Pairs]:
    """Validation, test and training pairs of a family: others for every seed, no question in two of the lists."""
    sizes = (settings.validation_items, settings.test_items, 768)
    return tuple(split(family, tokenizer, seed=1000 + seed, sizes=sizes))  # type: ignore[return-value]


def name(cell: Cell, index: int, size: int, settings: Settings) -> str:
    """What an adapter is called: all that it depends on."""
    about = cell.families(size)[index] if cell.kind == "specialists" else f"mixture{index}of{size}"
    return f"{about}-seed{cell.seed}-init{cell.init(index)}-steps{settings.steps}"


def trained(
    cell: Cell, index: int, size: int, base: Any, tokenizer: Any, cache: Path, settings: Settings
) -> Path:
    """The directory of adapter ``index`` of a set of ``size``, trained now if it is not there."""
    stream = cycle(_training(cell, index, size, tokenizer, settings))
    path = cache / name(cell, index, size, settings)
    return once(
        path,
        lambda out: train(
            base, tokenizer, stream, out, steps=settings.steps, seed=cell.init(index)
        ),
    )


def joint(
    cell: Cell, size: int, base: Any, tokenizer: Any, cache: Path, settings: Settings
) -> Path:
    """One adapter on the training data of all specialists of a set, for as many steps as they have together."""
    mixture = [
        p
        for family in cell.families(size)
        for p in pairs(tokenizer, family, cell.seed, settings)[2]
    ]
    random.Random(cell.seed).shuffle(mixture)
    steps = size * settings.steps
    path = cache / f"joint{size}-seed{cell.seed}-steps{steps}"
    return once(
        path,
        lambda out: train(base, tokenizer, cycle(mixture), out, steps=steps, seed=cell.init(0)),
    )


def _training(cell: Cell, index: int, size: int, tokenizer: Any, settings: Settings) -> Pairs:
    """A family for a specialist; for one goal a share of every family that no other adapter sees."""
    families = cell.families(size)
    if cell.kind == "specialists":
        return pairs(tokenizer, families[index], cell.seed, settings)[2]
    mixture = [
        p
        for family in families
        for p in pairs(tokenizer, family, cell.seed, settings)[2][index::size]
    ]
    random.Random(100 * cell.seed + index).shuffle(mixture)
    return mixture


def once(path: Path, make: Callable[[Path], None]) -> Path:
    """Make a directory under another name and rename it when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            aside = path.with_name(f".{path.name}.partial")
            shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
            make(aside)
            aside.rename(path)
    return path
