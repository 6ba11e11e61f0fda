"""The tables of docs/benchmarks.md and the plot, from the committed results."""

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
    """Return the machine, every case, growth and exactness next to their bars, and the peers."""
    on = results["machine"]
    where = (
        f"Measured on {on['cores']} cores of {on['cpu']}, {on['threads']} threads, "
        f"torch {on['torch']}; median of {results['repeats']}."
    )
    cases: list[dict[str, Any]] = []
    for row in results["rows"]:
        figures = {name: value for name, value in row.items() if name != "model"}
        cases.append({"shapes": _TITLES[row["model"]], **figures})
    return "\n\n".join([where, table(cases), table(bars(results)), table(_peers(results))])


def bars(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was measured next to what is required."""
    small, large = _case(results, "qwen3-8b", 3, 16), _case(results, "qwen3-8b", 3, 64)
    deep = _case(results, "qwen3-8b-72", 3, 16)
    few, many = (_case(results, "smollm2-135m", count, 16) for count in (4, 16))
    worst = results["errors"][-1]
    memory = "memory above imports"
    measured = [
        ("3 x Qwen3-8B, r = 64, over the floor", large["over the floor"], 3.0),
        ("3 x Qwen3-8B, r = 16, over the floor", small["over the floor"], 3.0),
        ("N = 16 over N = 4", many["seconds"] / few["seconds"], 4.6),
        ("72 layers over 36", deep["seconds"] / small["seconds"], 2.1),
        (f"{memory}, 3 x Qwen3-8B, r = 64 (MB)", large[f"{memory} (MB)"], 600.0),
        (f"error in float32, condition {worst['condition']}", worst["gam, relative error"], 1e-5),
    ]
    rows = [{"what": what, "measured": value, "at most": bar} for what, value, bar in measured]
    peer = "PEFT svd over our mean, one module of 4096 x 4096"
    rows.append({"what": peer, "measured": results["module"]["ratio"], "at least": 500.0})
    return rows


def _case(results: dict[str, Any], model: str, count: int, rank: int) -> dict[str, Any]:
    """Return the row of ``gam`` in one case."""
    key = (model, count, rank, "gam")
    return next(r for r in results["rows"] if (r["model"], r["N"], r["r"], r["method"]) == key)


def _peers(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the peers on the shapes of a whole model, over our mean of as many adapters."""
    ours = [r for r in results["rows"] if (r["model"], r["N"], r["r"]) == ("qwen3-8b", 4, 16)]
    mean = next(r["seconds"] for r in ours if r["method"] == "mean")
    seconds = {f"gam-merge {r['method']}, with read and write": r["seconds"] for r in ours}
    seconds |= {r["peer"]: r["seconds"] for r in results["peers"]}
    rows: list[dict[str, Any]] = []
    for name, value in seconds.items():
        row = {"4 x Qwen3-8B shapes, r = 16": name, "seconds": value, "over our mean": value / mean}
        rows.append(row)
    return rows


def write() -> None:
    """Write the tables into the page, and the plot next to the results."""
    page.write("speed", tables(read()))
    plot(read(), PLOT)


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw the seconds of every case next to its floor."""
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
