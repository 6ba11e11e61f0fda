"""Draw the picture of README.md from what was measured: python docs/picture.py.

Three trained adapters, the adapter that they become, and the loss of each on questions that it was
not trained on, from examples/adapters/figures.json.
"""

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

import gam_merge as gm

ROOT = Path(__file__).parents[1]
ADAPTERS = ROOT / "examples" / "adapters"
PICTURES = {"light": ROOT / "docs" / "merge.svg", "dark": ROOT / "docs" / "merge-dark.svg"}
NAMES = ("addition", "sorting", "spelling")
_INK = {"light": "#1f2328", "dark": "#e6edf3"}
_MUTED = {"light": "#656d76", "dark": "#8b949e"}
_COLOURS = {"addition": "#4c8ed9", "sorting": "#d9822b", "spelling": "#9a6dd7", "merge": "#2da160"}
MERGE, BASE = "merge, auto (default)", "base"


def losses() -> dict[str, dict[str, float]]:
    """Return the held-out loss of each adapter, the base and the merge on each task."""
    rows = json.loads((ADAPTERS / "figures.json").read_text("utf-8"))["evaluation"]
    table: dict[str, dict[str, float]] = {}
    for name in (BASE, *NAMES, MERGE):
        table[name] = {task: rows[name][task]["loss"] for task in NAMES}
    return table


def merged() -> gm.MergeReport:
    """Return what the default merge of the adapters did."""
    return gm.merge([ADAPTERS / name for name in NAMES]).report


def draw(scheme: str, path: Path) -> None:
    """Write the picture for a light or a dark page; its background is the page."""
    style = {
        "font.family": "sans-serif",
        "font.size": 10,
        "svg.fonttype": "none",
        "svg.hashsalt": "gam-merge",
        "text.color": _INK[scheme],
        "xtick.color": _INK[scheme],
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(9, 3.3))
        factors, bars = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _draw_factors(factors, scheme)
        _draw_losses(bars, scheme)
        figure.subplots_adjust(left=0.01, right=0.99, top=0.88, bottom=0.11, wspace=0.04)
        figure.savefig(path, transparent=True, metadata={"Date": None})
    lines = [line.rstrip() for line in path.read_text("utf-8").splitlines()]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _draw_factors(axes: Axes, scheme: str) -> None:
    """Draw B and A of the adapters, and of their merge."""
    axes.set(xlim=(0, 10), ylim=(-0.4, 9.6))
    axes.axis("off")
    axes.set_title("three adapters in, one adapter out", loc="left", fontsize=11)
    for name, bottom, survival in zip(NAMES, (6.6, 3.3, 0.0), merged().survival, strict=True):
        _draw_adapter(axes, 0.2, bottom, _COLOURS[name])
        axes.text(0.85, bottom + 1.25, name, va="top")
        share = f"{survival:.0%} is in the result"
        axes.text(0.85, bottom + 0.05, share, color=_MUTED[scheme], va="bottom", fontsize=9)
        arrow = FancyArrowPatch(
            (4.4, bottom + 1.2), (6.2, 4.6), arrowstyle="-|>", mutation_scale=11,
            color=_MUTED[scheme], connectionstyle="arc3,rad=0",
        )  # fmt: skip
        axes.add_patch(arrow)
    _draw_adapter(axes, 6.5, 3.3, _COLOURS["merge"])
    axes.text(7.15, 4.55, "merged", va="top")
    axes.text(7.15, 3.35, "of the same rank", color=_MUTED[scheme], va="bottom", fontsize=9)


def _draw_adapter(axes: Axes, left: float, bottom: float, colour: str) -> None:
    """Draw a tall B next to a wide A."""
    axes.add_patch(Rectangle((left, bottom), 0.4, 2.3, color=colour, linewidth=0))
    axes.add_patch(Rectangle((left + 0.6, bottom + 1.7), 2.3, 0.6, color=colour, linewidth=0))


def _draw_losses(axes: Axes, scheme: str) -> None:
    """Draw three bars per task: the base, the adapter of the task, the merge."""
    table = losses()
    axes.set_title("loss on held-out questions: lower is better", loc="left", fontsize=11)
    for place, task in enumerate(NAMES):
        bars = (
            ("base", table[BASE][task], _MUTED[scheme]),
            ("own", table[task][task], _COLOURS[task]),
            ("merged", table[MERGE][task], _COLOURS["merge"]),
        )
        for offset, (label, loss, colour) in enumerate(bars):
            x = place + 0.29 * (offset - 1)
            axes.bar(x, loss, 0.26, color=colour)
            axes.text(x, loss + 0.08, f"{loss:.2f}", ha="center", fontsize=9)
            axes.text(x, -0.1, label, ha="center", va="top", fontsize=7.5, color=_MUTED[scheme])
    axes.set_xticks(range(len(NAMES)), NAMES)
    axes.tick_params(length=0, pad=12)
    axes.set_yticks([])
    axes.set(ylim=(0, 5.2))
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)


def main() -> None:
    for scheme, path in PICTURES.items():
        draw(scheme, path)
        print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
