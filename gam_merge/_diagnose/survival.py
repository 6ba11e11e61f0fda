"""The figure of a merge: how much of each adapter survives."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from gam_merge._common.names import group, shortened
from gam_merge._diagnose.drawing import finish, line, png

_TICKS = 16  # layers that are named below the figure


def survival_png(report: Mapping[str, Any]) -> bytes:
    """Draw how much of each adapter survives per layer; ``report`` as a merge wrote it."""
    return png(lambda axes: _survival(axes, report), (8.0, 3.0))


def _survival(axes: Axes, report: Mapping[str, Any]) -> None:
    layers = group([module["name"] for module in report["modules"]], "layer")
    names = shortened(report["sources"], "/")
    for i, source in enumerate(report["sources"]):
        percents = []
        for members in layers.values():
            modules = [report["modules"][j] for j in members]
            percents.append(_percent(modules, i))
        line(axes, i, range(len(percents)), percents, f"{i} {names[source]}")
    labels = list(shortened(layers).values())
    step = -(-len(labels) // _TICKS)
    axes.set_xticks(range(0, len(labels), step), labels[::step])
    finish(axes, "what survives of each adapter", "layer", "%")


def _percent(modules: Sequence[Mapping[str, Any]], i: int) -> float:
    """Return 100 <merged, delta_i> / |delta_i|^2, NaN if the delta is zero."""
    energy = sum(module["norms"][i] ** 2 for module in modules)
    if not energy:
        return np.nan
    return 100 * sum(module["inners"][i] for module in modules) / energy
