"""The tables of the README and the plot, from the committed results."""

import json
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.measure import RESULTS, table

FILE = RESULTS / "speed.json"
PLOT = FILE.with_suffix(".svg")
_TITLES = {
    "smollm2-135m": "SmolLM2-135M",
    "qwen3-8b": "Qwen3-8B",
    "qwen3-8b-72": "Qwen3-8B, 72 layers",
    "llama3-70b": "Llama-3-70B",
    "moe-128": "128 experts, 4 layers",
}


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text("utf-8"))


def tables(results: dict[str, Any]) -> str:
    """Where it was measured, every case, growth and exactness beside the bars that they have to meet, and peers."""
    on, rows = results["machine"], results["rows"]
    where = (
        f"Measured on {on['cores']} cores of {on['cpu']}, {on['threads']} threads, torch {on['torch']}; "
        f"median of {results['repeats']}."
    )
    ours = [
        {"shapes": _TITLES[row["model"]], **{k: v for k, v in row.items() if k != "model"}}
        for row in rows
    ]
    return "\n\n".join([where, table(ours), table(bars(results)), table(_peers(results))])


def bars(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What is asked, what was measured."""

    def row(model: str, count: int, rank: int) -> dict[str, Any]:
        key = (model, count, rank, "gam")
        return next(r for r in results["rows"] if (r["model"], r["N"], r["r"], r["method"]) == key)

    small, large = row("qwen3-8b", 3, 16), row("qwen3-8b", 3, 64)
    worst = results["errors"][-1]
    measured = [
        ("3 x Qwen3-8B, r = 64, over the floor", large["over the floor"], 3.0),
        ("3 x Qwen3-8B, r = 16, over the floor", small["over the floor"], 3.0),
        (
            "N = 16 over N = 4",
            row("smollm2-135m", 16, 16)["seconds"] / row("smollm2-135m", 4, 16)["seconds"],
            4.6,
        ),
        ("72 layers over 36", row("qwen3-8b-72", 3, 16)["seconds"] / small["seconds"], 2.1),
        (
            "memory above imports, 3 x Qwen3-8B, r = 64 (MB)",
            large["memory above imports (MB)"],
            600.0,
        ),
        (f"error in float32, condition {worst['condition']}", worst["gam, relative error"], 1e-5),
    ]
    least = [
        ("PEFT svd over our mean, one module of 4096 x 4096", results["module"]["ratio"], 500.0)
    ]
    return [{"what": what, "measured": value, "at most": bar} for what, value, bar in measured] + [
        {"what": what, "measured": value, "at least": bar} for what, value, bar in least
    ]


def _peers(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Peers on the shapes of a whole model, over our mean of as many adapters."""
    mine = [r for r in results["rows"] if (r["model"], r["N"], r["r"]) == ("qwen3-8b", 4, 16)]
    mean = next(r["seconds"] for r in mine if r["method"] == "mean")
    named = [
        {"peer": f"gam-merge {r['method']}, with read and write", "seconds": r["seconds"]}
        for r in mine
    ]
    others = [{"peer": r["peer"], "seconds": r["seconds"]} for r in results["peers"]]
    return [
        {
            "4 x Qwen3-8B shapes, r = 16": r["peer"],
            "seconds": r["seconds"],
            "over our mean": r["seconds"] / mean,
        }
        for r in (*named, *others)
    ]


def write() -> None:
    """The tables into the README, and the plot beside the results."""
    page.write("speed", tables(read()))
    plot(read(), PLOT)


def plot(results: dict[str, Any], path: Path) -> None:
    """Seconds of every case beside its floor."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "gam-merge"
    from matplotlib import pyplot

    rows = results["rows"]
    labels = [f"{_TITLES[r['model']]}, N = {r['N']}, r = {r['r']}, {r['method']}" for r in rows]
    figure, axis = pyplot.subplots(figsize=(7, 0.35 * len(rows) + 1.2))
    axis.barh(labels, [r["seconds"] for r in rows], height=0.7, label="gam-merge")
    axis.barh(
        labels,
        [r["floor (s)"] for r in rows],
        height=0.35,
        label="floor: read, write, least arithmetic",
    )
    axis.set(xscale="log", xlabel="seconds")
    axis.invert_yaxis()
    axis.legend()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
