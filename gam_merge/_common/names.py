"""Where a module sits: its layer and its type, read off its name.

``model.layers.3.self_attn.q_proj`` is of layer ``model.layers.3`` and type ``self_attn.q_proj``. The layer ends at
the first number; numbers after it (experts, blocks within a block) become ``*``. A name without a number has no layer.
A matrix of a stack is named ``module[3]``.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
from numpy.typing import NDArray

By = Literal["layer", "type", "module"]


def layer_of(name: str) -> str:
    """The part of the name up to its first number, ``-`` if it has none."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return "-" if first is None else ".".join(parts[: first + 1])


def type_of(name: str) -> str:
    """What is left of the name after its layer, the same for every layer."""
    parts = re.sub(r"\[\d+\]$", "[*]", name).split(".")
    first = next((i for i, part in enumerate(parts) if part.isdecimal()), -1)
    return ".".join("*" if part.isdecimal() else part for part in parts[first + 1 :])


def group(names: Sequence[str], by: By) -> dict[str, list[int]]:
    """Positions of the names by layer, type or module, in natural order: layer 10 comes after layer 9."""
    labels = [
        layer_of(name) if by == "layer" else type_of(name) if by == "type" else name
        for name in names
    ]
    order = sorted(range(len(names)), key=lambda i: natural(labels[i]))
    return {label: list(members) for label, members in groupby(order, key=labels.__getitem__)}


@dataclass(frozen=True, eq=False)
class Grid:
    """One figure a layer and type of module: what a heat map shows."""

    layers: tuple[str, ...]
    types: tuple[str, ...]
    values: NDArray[np.float64]  # (types, layers), NaN where there is no such module

    @property
    def short_types(self) -> tuple[str, ...]:
        """The shortest tail of each type that no other shares: ``q_proj`` for ``self_attn.q_proj``."""
        return tuple(shortened(self.types).values())


def grid(names: Sequence[str], value: Callable[[list[int]], float]) -> Grid:
    """``value`` of the modules of each layer and type, given their positions."""
    layers, types = group(names, "layer"), group(names, "type")
    values = np.full((len(types), len(layers)), np.nan)
    for row, some in enumerate(types.values()):
        for column, others in enumerate(layers.values()):
            if both := sorted(set(some).intersection(others)):
                values[row, column] = value(both)
    return Grid(tuple(layers), tuple(types), values)


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A sort key by which numbers within names count as numbers."""
    return tuple(
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    )


def shortened(labels: Iterable[str], separator: str = ".") -> dict[str, str]:
    """The shortest tail of each label that no other label shares: ``q_proj`` for ``self_attn.q_proj``."""
    parts = {label: label.split(separator) for label in labels}
    short: dict[str, str] = {}
    for label, own in parts.items():
        others = [other for name, other in parts.items() if name != label]
        size = next(
            (k for k in range(1, len(own)) if all(other[-k:] != own[-k:] for other in others)),
            len(own),
        )
        short[label] = separator.join(own[-size:])
    return short
