"""Figures of comparisons and inspections, on matplotlib. Nothing global is touched: no pyplot, no default style.

Text and axes of an inline SVG take the colour of the page around it, so that figures fit light and dark alike.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from io import BytesIO, StringIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from gam_merge._common.names import Grid, shortened
from gam_merge._diagnose.comparison import Comparison
from gam_merge._diagnose.inspection import Inspection

Draw = Callable[[Axes], None]

# Of lines, told apart on white and on black, and by most colour-blind eyes.
_COLORS = ("#4c78c8", "#e0853d", "#3f9f6b", "#c2559d", "#8b74d1", "#b59a2d", "#3aa6b9", "#cf5f5f")
_LINES = ("-", "--", ":", "-.")
_INK = "#0a0b0c"  # stands for the colour of the page's text
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "svg.fonttype": "none",
    "text.hinting": "no_hinting",  # widths as a browser has them, nearly:
    "figure.constrained_layout.w_pad": 0.15,  # room for what its font is wider
    "svg.hashsalt": "gam-merge",  # the same figure has the same bytes
}
_NO_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}
_TICKS = 12  # layers that are named below a heat map
_LONGEST = 24  # characters of a label


def png(draw: Draw, size: tuple[float, float]) -> bytes:
    """One panel, as the bytes of a PNG. size: (width, height) in inches."""
    content = BytesIO()
    save(compose({"panel": draw}, [["panel"]], size), content, "png")
    return content.getvalue()


def sheet(found: Comparison | Inspection) -> Figure:
    """All figures together."""
    if isinstance(found, Comparison):
        return compose(
            comparison_panels(found), [["u"] * 3, ["v"] * 3, ["spectra", "angles", "gram"]], (12, 9)
        )
    return compose(
        inspection_panels(found), [["norm"] * 2, ["rank"] * 2, ["spectra", "energy"]], (12, 9)
    )


def comparison_panels(found: Comparison) -> dict[str, Draw]:
    """The figures of a comparison by name."""
    return {
        "u": lambda axes: _heat(
            axes, found.grid("times_chance_u"), "overlap of column spaces, x chance"
        ),
        "v": lambda axes: _heat(
            axes, found.grid("times_chance_v"), "overlap of row spaces, x chance"
        ),
        "spectra": lambda axes: _spectra(axes, _spectra_of_adapters(found)),
        "angles": lambda axes: _angles(axes, found),
        "gram": lambda axes: _gram(axes, found),
    }


def inspection_panels(found: Inspection) -> dict[str, Draw]:
    """The figures of an inspection by name."""
    types = {
        label: [module.spectrum for module in part.modules]
        for label, part in found.by("type").items()
    }
    names = shortened(types)
    return {
        "norm": lambda axes: _heat(axes, found.grid("norm"), "norm of the delta"),
        "rank": lambda axes: _heat(axes, found.grid("effective_rank"), "effective rank"),
        "spectra": lambda axes: _spectra(
            axes, {names[label]: spectra for label, spectra in types.items()}
        ),
        "energy": lambda axes: _energy(axes, found),
    }


def compose(
    panels: Mapping[str, Draw], mosaic: Sequence[Sequence[str]], size: tuple[float, float]
) -> Figure:
    """Panels side by side, as the mosaic says."""
    with _styled():
        figure = Figure(figsize=size, layout="constrained")
        for name, axes in figure.subplot_mosaic([list(row) for row in mosaic]).items():
            panels[name](axes)
    return figure


def save(figure: Figure, out: Any, kind: str) -> None:
    """Write it as png, svg or pdf. No date, no version: the same figure has the same bytes."""
    with _styled():
        figure.savefig(out, format=kind, dpi=160, facecolor="white", metadata=_NO_METADATA[kind])


def inline_svg(draw: Draw, size: tuple[float, float], prefix: str) -> str:
    """One panel as SVG to stand in a page: transparent, in the colour of its text, ids of its own."""
    out = StringIO()
    figure = compose({"panel": draw}, [["panel"]], size)
    with _styled():
        figure.savefig(out, format="svg", transparent=True, metadata=_NO_METADATA["svg"])
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)


def _styled() -> AbstractContextManager[None]:
    """Our style, whatever the user's is."""
    style: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_STYLE}
    return matplotlib.rc_context(style)


def _heat(axes: Axes, grid: Grid, title: str) -> None:
    """A cell a layer and type."""
    names, layers = shortened(grid.types), shortened(grid.layers)
    image = axes.pcolormesh(np.ma.masked_invalid(grid.values), cmap="viridis", vmin=0.0)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01)
    assert bar.solids is not None
    bar.solids.set_rasterized(False)  # no bitmap in an SVG: pages allow no images
    bar.solids.set_edgecolor("face")
    bar.outline.set_visible(False)
    step = -(-len(grid.layers) // _TICKS)
    axes.set_xticks(
        np.arange(0, len(grid.layers), step) + 0.5, [short(layers[x]) for x in grid.layers[::step]]
    )
    axes.set_yticks(np.arange(len(grid.types)) + 0.5, [short(names[x]) for x in grid.types])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.set_title(title, loc="left")
    axes.set_xlabel("layer")


def _spectra(axes: Axes, spectra: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Singular values of deltas of norm one, the mean over modules."""
    for i, (label, modules) in enumerate(spectra.items()):
        width = max((len(values) for values in modules), default=0)
        rows = [
            np.pad(values, (0, width - len(values))) / np.linalg.norm(values)
            for values in modules
            if len(values)
        ]
        if rows:
            line(axes, i, np.arange(1, width + 1), np.mean(rows, 0), label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axes, "spectra of the deltas, norm one", "singular value", "mean size")


def _spectra_of_adapters(found: Comparison) -> dict[str, list[Sequence[float]]]:
    labels = _labels(found)
    return {
        label: [module.spectra[i] for module in found.modules] for i, label in enumerate(labels)
    }


def _angles(axes: Axes, found: Comparison) -> None:
    """How many principal angles are at most so large, over all modules and pairs."""
    shares = np.linspace(0, 1, 201)
    sides = (
        (
            "column spaces",
            [c for m in found.modules for c in m.cosines_u.values()],
            found.total.chance_u,
        ),
        (
            "row spaces",
            [c for m in found.modules for c in m.cosines_v.values()],
            found.total.chance_v,
        ),
    )
    for i, (label, cosines, chance) in enumerate(sides):
        if cosines:
            line(
                axes,
                i,
                np.quantile(np.degrees(np.arccos(np.concatenate(cosines))), shares),
                shares,
                label,
            )
            axes.axvline(
                float(np.degrees(np.arccos(np.sqrt(chance)))),
                color=_COLORS[i],
                linewidth=0.8,
                alpha=0.6,
            )
    axes.set_xlim(0, 90)
    finish(axes, "principal angles", "degrees (thin line: chance)", "share of angles below")


def _gram(axes: Axes, found: Comparison) -> None:
    """Cosines, with the norms in the labels."""
    cosines, norms = found.total.cosines, found.total.norms
    axes.pcolormesh(np.ma.masked_invalid(cosines), cmap="RdBu_r", vmin=-1, vmax=1)
    if len(cosines) <= 10:
        for i, j in np.argwhere(np.isfinite(cosines)):
            dark = abs(cosines[i, j]) > 0.5
            ink = "white" if dark else "#202020"
            axes.text(
                j + 0.5,
                i + 0.5,
                f"{cosines[i, j]:.2f}",
                ha="center",
                va="center",
                color=ink,
                fontsize=8,
            )
    ticks = np.arange(len(norms)) + 0.5
    axes.set_yticks(
        ticks,
        [f"{label}\n|.| = {norm:.3g}" for label, norm in zip(_labels(found), norms, strict=True)],
    )
    axes.set_xticks(ticks, [str(i) for i in range(len(norms))])
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set_title("cosines of the deltas", loc="left")


def _energy(axes: Axes, found: Inspection) -> None:
    """What a cut of every module to a rank keeps."""
    names = shortened(found.by("type"))
    for i, (label, part) in enumerate(found.by("type").items()):
        ranks = range(max(module.rank for module in part.modules) + 1)
        line(axes, i, ranks, [part.energy_share(rank) for rank in ranks], names[label])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axes, "energy kept by a cut to a rank", "rank", "share")


def line(axes: Axes, i: int, x: Any, y: Any, label: str) -> None:
    style = _LINES[i // len(_COLORS) % len(_LINES)]
    axes.plot(x, y, style, color=_COLORS[i % len(_COLORS)], linewidth=1.6, label=short(label))


def finish(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _labels(found: Comparison) -> list[str]:
    """Position and the end of the path of each adapter."""
    names = shortened(found.sources, "/")
    return [short(names[source], f"{i} ") for i, source in enumerate(found.sources)]


def short(label: str, head: str = "") -> str:
    """At most _LONGEST characters: the head, and the end of the label."""
    room = _LONGEST - len(head)
    return head + (label if len(label) <= room else f"...{label[3 - room :]}")
