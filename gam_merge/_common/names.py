"""The place of a module in its model: layer and type, read off its name.

``model.layers.3.self_attn.q_proj`` has layer ``model.layers.3`` and type ``self_attn.q_proj``.
The layer ends at the first number; numbers after it (experts, blocks within a block) become ``*``.
A name without a number has no layer. A matrix of a stack is named ``module[3]``.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
from numpy.typing import NDArray

By = Literal["layer", "type", "module"]


def layer_of(name: str) -> str:
    """Return the part of the name up to its first number, ``-`` if it has none."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return "-" if first is None else ".".join(parts[: first + 1])


def type_of(name: str) -> str:
    """Return the rest of the name after its layer, which is the same in every layer."""
    parts = re.sub(r"\[\d+\]$", "[*]", name).split(".")
    first = next((i for i, part in enumerate(parts) if part.isdecimal()), -1)
    return ".".join(map(_starred, parts[first + 1 :]))


def _starred(part: str) -> str:
    return "*" if part.isdecimal() else part


_LABELS: dict[By, Callable[[str], str]] = {"layer": layer_of, "type": type_of, "module": str}


def group(names: Sequence[str], by: By) -> dict[str, list[int]]:
    """Group positions of names by layer, type or module, in natural order: layer 10 after 9."""
    labels = [_LABELS[by](name) for name in names]
    order = sorted(range(len(names)), key=lambda i: natural(labels[i]))
    return {label: list(members) for label, members in groupby(order, key=labels.__getitem__)}


@dataclass(frozen=True, eq=False)
class Grid:
    """One figure per layer and type of module, as a heat map shows it.

    Example:
        >>> grid = gm.inspect("examples/adapters/addition").grid("norm")
        >>> grid.values.shape == (len(grid.types), len(grid.layers))
        True
    """

    layers: tuple[str, ...]
    types: tuple[str, ...]
    values: NDArray[np.float64]  # (types, layers), NaN where there is no such module


def grid(names: Sequence[str], value: Callable[[list[int]], float]) -> Grid:
    """Evaluate ``value`` for each layer and type, given the positions of its modules."""
    layers, types = group(names, "layer"), group(names, "type")
    values = np.full((len(types), len(layers)), np.nan)
    for row, of_type in enumerate(types.values()):
        for column, in_layer in enumerate(layers.values()):
            members = sorted(set(of_type).intersection(in_layer))
            if members:
                values[row, column] = value(members)
    return Grid(tuple(layers), tuple(types), values)


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key by which numbers within names count as numbers."""
    return tuple(map(_natural_part, re.split(r"(\d+)", name)))


def _natural_part(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdecimal() else (-1, part)


def shortened(labels: Iterable[str], separator: str = ".") -> dict[str, str]:
    """Map each label to its shortest tail that no other label shares.

    ``self_attn.q_proj`` becomes ``q_proj``.
    """
    parts = {label: label.split(separator) for label in labels}
    return {label: separator.join(_unique_tail(label, parts)) for label in parts}


def _unique_tail(label: str, parts: Mapping[str, list[str]]) -> list[str]:
    rivals = [words for name, words in parts.items() if name != label]
    for size in range(1, len(parts[label])):
        tail = parts[label][-size:]
        if all(words[-size:] != tail for words in rivals):
            return tail
    return parts[label]
