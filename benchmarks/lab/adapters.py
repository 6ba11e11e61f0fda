"""Adapters of a cell: each is trained once and kept in a folder, complete or not at all."""

import random
import shutil
from collections.abc import Callable
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.lab.design import Cell, Settings
from benchmarks.lab.rows import locked
from examples.smollm import split, train

Pairs = list[tuple[str, str]]


@cache
def pairs(tokenizer: Any, family: str, seed: int, settings: Settings) -> tuple[Pairs, Pairs, Pairs]:
    """Return validation, test and training pairs of a family, different for each seed.

    No question is in two of the lists.
    """
    sizes = (settings.validation_items, settings.test_items, 768)
    return tuple(split(family, tokenizer, seed=1000 + seed, sizes=sizes))  # type: ignore[return-value]


def name(cell: Cell, index: int, size: int, settings: Settings) -> str:
    """Return the name of an adapter: all that it depends on."""
    about = cell.families(size)[index] if cell.kind == "specialists" else f"mixture{index}of{size}"
    return f"{about}-seed{cell.seed}-init{cell.init(index)}-steps{settings.steps}"


def trained(
    cell: Cell, index: int, size: int, base: Any, tokenizer: Any, cache: Path, settings: Settings
) -> Path:
    """Return the directory of adapter ``index`` of a set of ``size``; it is trained if needed."""
    stream = cycle(_training(cell, index, size, tokenizer, settings))
    options = {"steps": settings.steps, "seed": cell.init(index)}
    make = partial(train, base, tokenizer, stream, **options)
    return once(cache / name(cell, index, size, settings), make)


def joint(
    cell: Cell, size: int, base: Any, tokenizer: Any, cache: Path, settings: Settings
) -> Path:
    """Return the directory of one adapter trained on the data of all specialists of a set.

    It has as many steps as they have together.
    """
    mixture: Pairs = []
    for family in cell.families(size):
        mixture += pairs(tokenizer, family, cell.seed, settings)[2]
    random.Random(cell.seed).shuffle(mixture)
    steps = size * settings.steps
    make = partial(train, base, tokenizer, cycle(mixture), steps=steps, seed=cell.init(0))
    return once(cache / f"joint{size}-seed{cell.seed}-steps{steps}", make)


def _training(cell: Cell, index: int, size: int, tokenizer: Any, settings: Settings) -> Pairs:
    """Return a family for a specialist; for one goal a share of every family, unseen by others."""
    families = cell.families(size)
    if cell.kind == "specialists":
        return pairs(tokenizer, families[index], cell.seed, settings)[2]
    mixture: Pairs = []
    for family in families:
        mixture += pairs(tokenizer, family, cell.seed, settings)[2][index::size]
    random.Random(100 * cell.seed + index).shuffle(mixture)
    return mixture


def once(path: Path, make: Callable[[Path], None]) -> Path:
    """Make a directory under another name, and rename it when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            aside = path.with_name(f".{path.name}.partial")
            shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
            make(aside)
            aside.rename(path)
    return path
