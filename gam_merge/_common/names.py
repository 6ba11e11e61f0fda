"""Where a module sits: its layer and its type, read off its name.

``model.layers.3.self_attn.q_proj`` has layer ``model.layers.3`` and type ``self_attn.q_proj``. The
layer ends at the first number; later numbers (experts, blocks within a block) become ``*``. A name
without a number has no layer. A matrix of a stack is named ``module[3]``. In a name without dots,
as kohya's files have them, the parts stand between underscores.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
from numpy.typing import NDArray

By = Literal["layer", "type", "module"]

_LONGEST = 24  # characters of a clipped label


def layer_of(name: str) -> str:
    """Return the part of a name up to its first number, ``-`` if it has none."""
    end = _end_of_layer(name)
    return name[:end] if end else "-"


def layer_number(name: str) -> tuple[str, int] | None:
    """Return the stack of layers that a module is in and the number of its layer, if it has one."""
    layer = layer_of(name)
    number = re.search(r"\d+$", layer)
    return (layer[: number.start()], int(number[0])) if number else None


def type_of(name: str) -> str:
    """Return what follows the layer in a name: the same in every layer."""
    separator = _separator(name)
    tail = name[_end_of_layer(name) :].removeprefix(separator)
    parts = re.sub(r"\[\d+\]$", "[*]", tail).split(separator)
    return separator.join(map(_starred, parts))


def _end_of_layer(name: str) -> int:
    """Return where the first number of a name ends that is a part by itself, 0 without one."""
    separator = re.escape(_separator(name))
    match = re.search(rf"(?:^|{separator})\d+(?={separator}|$)", name)
    return match.end() if match else 0


def _separator(name: str) -> str:
    return "." if "." in name else "_"


def _starred(part: str) -> str:
    return "*" if part.isdecimal() else part


def group(names: Sequence[str], by: By) -> dict[str, list[int]]:
    """Return the positions of the names by layer, type or module; layer 10 comes after layer 9."""
    labels = [_label(name, by) for name in names]
    order = sorted(range(len(names)), key=lambda i: natural(labels[i]))
    return {label: list(members) for label, members in groupby(order, key=labels.__getitem__)}


def _label(name: str, by: By) -> str:
    if by == "layer":
        return layer_of(name)
    if by == "type":
        return type_of(name)
    return name


@dataclass(frozen=True, eq=False)
class Grid:
    """One number per layer and type of module: what a heat map shows.

    Attributes:
        layers: a label per column; of neighbours that share one, that of the first.
        types: a label per row, likewise.
        values: (types, layers), NaN where there is no such module.
        sizes: how many types and layers there are.
        pooled: how many types share a row, and layers a column; a value is their mean.

    Example:
        >>> grid = gm.inspect("examples/adapters/addition").grid("norm")
        >>> grid.layers[:2], grid.types[-1], grid.values.shape
        (('model.layers.0', 'model.layers.1'), 'self_attn.v_proj', (7, 30))
    """

    layers: tuple[str, ...]
    types: tuple[str, ...]
    values: NDArray[np.float64]
    sizes: tuple[int, int]
    pooled: tuple[int, int] = (1, 1)

    @property
    def short_types(self) -> tuple[str, ...]:
        """The shortest tail of each type that no other shares, such as ``q_proj``."""
        return tuple(shortened(self.types).values())


def grid(
    names: Sequence[str],
    value: Callable[[list[int]], float],
    most: tuple[int, int] | None = None,
) -> Grid:
    """Evaluate ``value`` for the modules of each layer and type, given their positions.

    most: rows and columns of the grid; neighbours are averaged if there are more.
    """
    layers, types = group(names, "layer"), group(names, "type")
    sizes = len(types), len(layers)
    high, wide = 1, 1
    if most is not None:
        high, wide = max(1, -(-sizes[0] // most[0])), max(1, -(-sizes[1] // most[1]))
    shape = -(-sizes[0] // high), -(-sizes[1] // wide)
    sums, counts = np.zeros(shape), np.zeros(shape)
    for (row, column), members in _cells(types, layers).items():
        number = value(members)
        if not np.isnan(number):
            sums[row // high, column // wide] += number
            counts[row // high, column // wide] += 1
    values = np.divide(sums, counts, out=np.full(shape, np.nan), where=counts > 0)
    return Grid(tuple(layers)[::wide], tuple(types)[::high], values, sizes, (high, wide))


def _cells(
    types: Mapping[str, list[int]], layers: Mapping[str, list[int]]
) -> dict[tuple[int, int], list[int]]:
    """Return the members of each row and column that have some."""
    rows, columns = _groups(types), _groups(layers)
    cells: dict[tuple[int, int], list[int]] = {}
    for j in sorted(rows):
        cells.setdefault((rows[j], columns[j]), []).append(j)
    return cells


def _groups(members: Mapping[str, list[int]]) -> dict[int, int]:
    """Return the number of the group that each position is in."""
    groups: dict[int, int] = {}
    for group, positions in enumerate(members.values()):
        groups |= dict.fromkeys(positions, group)
    return groups


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key by which numbers within names compare as numbers."""
    return tuple(map(_natural_part, re.split(r"(\d+)", name)))


def _natural_part(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdecimal() else (-1, part)


def shortened(labels: Iterable[str], separator: str = ".") -> dict[str, str]:
    """Return the shortest tail of each label that no other label shares.

    ``q_proj`` for ``self_attn.q_proj``.
    """
    short = {label: label for label in labels}
    pending, size = {label: label.split(separator) for label in short}, 1
    while pending:
        tails = {label: separator.join(words[-size:]) for label, words in pending.items()}
        counts = Counter(tails.values())
        for label, tail in tails.items():
            if counts[tail] == 1:
                short[label] = tail
            if counts[tail] == 1 or len(pending[label]) == size:
                del pending[label]
        size += 1
    return short


def clipped(label: str, head: str = "") -> str:
    """Return the head and the end of a label, in at most 24 characters."""
    room = _LONGEST - len(head)
    if len(label) <= room:
        return head + label
    return f"{head}...{label[3 - room :]}"
