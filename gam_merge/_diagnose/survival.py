"""The figure of a merge: what survives of each adapter."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from gam_merge._common.names import group, shortened
from gam_merge._diagnose.figures import finish, line, png


def survival_png(report: Mapping[str, Any]) -> bytes:
    """How much of each adapter survives in each layer; ``report`` as a merge wrote it."""
    return png(lambda axes: _survival(axes, report), (8.0, 3.0))


def _survival(axes: Axes, report: Mapping[str, Any]) -> None:
    modules = report["modules"]
    layers = group([module["name"] for module in modules], "layer")
    names = shortened(report["sources"], "/")
    for i, source in enumerate(report["sources"]):
        shares = []
        for members in layers.values():
            energy = sum(modules[j]["norms"][i] ** 2 for j in members)
            shares.append(
                100 * sum(modules[j]["inners"][i] for j in members) / energy if energy else np.nan
            )
        line(axes, i, range(len(shares)), shares, f"{i} {names[source]}")
    labels = list(shortened(layers).values())
    step = -(-len(labels) // 16)
    axes.set_xticks(range(0, len(labels), step), labels[::step])
    finish(axes, "what survives of each adapter", "layer", "%")
