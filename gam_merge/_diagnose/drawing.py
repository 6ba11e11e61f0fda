"""Drawing tools on matplotlib, without global effects: no pyplot, no default style."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gam_merge._common.names import clipped

Draw = Callable[[Axes], None]

# Line colours: distinct on white, on black, and to most colour-blind eyes.
COLORS = ("#4c78c8", "#e0853d", "#3f9f6b", "#c2559d", "#8b74d1", "#b59a2d", "#3aa6b9", "#cf5f5f")
_LINES = ("-", "--", ":", "-.")
_INK = "#0a0b0c"
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
    "text.hinting": "no_hinting",  # nearly the widths that a browser gives the text of an SVG;
    "figure.constrained_layout.w_pad": 0.15,  # room for what its font is wider
    "svg.hashsalt": "gam-merge",  # the same figure has the same bytes
}
_NO_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}


def compose(
    panels: Mapping[str, Draw], rows: Sequence[Sequence[str]], size: tuple[float, float]
) -> Figure:
    """Draw panels side by side, in rows of their names. size: (width, height) in inches."""
    with _styled():
        figure = Figure(figsize=size, layout="constrained")
        for name, axes in figure.subplot_mosaic([list(row) for row in rows]).items():
            panels[name](axes)
    return figure


def save(figure: Figure, out: Any, kind: str) -> None:
    """Write a png, svg or pdf. No date, no version: the same figure has the same bytes."""
    with _styled():
        figure.savefig(out, format=kind, dpi=160, facecolor="white", metadata=_NO_METADATA[kind])


def png(draw: Draw, size: tuple[float, float]) -> bytes:
    """Draw a single panel as the bytes of a PNG."""
    content = BytesIO()
    save(compose({"panel": draw}, [["panel"]], size), content, "png")
    return content.getvalue()


def _styled() -> AbstractContextManager[None]:
    """Apply our style, whatever the user's is."""
    style: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_STYLE}
    return matplotlib.rc_context(style)


def line(axes: Axes, i: int, x: Any, y: Any, label: str) -> None:
    """Draw line number ``i``; each has a different colour or dash."""
    color, dash = COLORS[i % len(COLORS)], _LINES[i // len(COLORS) % len(_LINES)]
    axes.plot(x, y, dash, color=color, linewidth=1.6, label=clipped(label))


def finish(axes: Axes, title: str, x: str, y: str) -> None:
    """Label the axes, and add a legend if there are labelled lines."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
