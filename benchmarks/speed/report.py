"""The tables of docs/benchmarks.md and the plot, from the committed results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.measure import RESULTS, measured_on, table
from benchmarks.speed.cases import CASES

FILE = RESULTS / "speed.json"
PLOT = FILE.with_suffix(".svg")
_UNMEASURED = "unmeasured"
_FIGURES = ("seconds", "floor (s)", "over the floor", "memory above imports (MB)")
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
    where = f"{measured_on(results['machine'])}; the least of {results['repeats']}."
    cases: list[dict[str, Any]] = []
    for model, count, rank, methods in CASES:
        for method in methods:
            row = _case(results, model, count, rank, method)
            case = {"shapes": _TITLES[model], "N": count, "r": rank, "method": method}
            cases.append({**case, **{name: row[name] for name in _FIGURES}})
    return "\n\n".join([where, table(cases), table(bars(results)), table(_peers(results))])


def bars(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was measured next to what is required."""
    worst, over, memory = results["errors"][-1], "over the floor", "memory above imports (MB)"
    measured: list[tuple[str, float | str, float]] = []
    for rank in (64, 16):
        for method, bar in (("gam", 2.0), ("mean", 2.2), ("consensus", 2.2)):
            row = _case(results, "qwen3-8b", 3, rank, method)
            measured.append((f"3 x Qwen3-8B, r = {rank}, {method}, {over}", row[over], bar))
    for rank in (64, 16):
        # Of random adapters, which share few directions, auto takes consensus.
        what = f"3 x Qwen3-8B, r = {rank}, auto over the method that it takes"
        auto, taken = (_case(results, "qwen3-8b", 3, rank, name) for name in ("auto", "consensus"))
        measured.append((what, _ratio(auto, taken), 1.1))
    few, many = (_case(results, "smollm2-135m", count, 16) for count in (4, 16))
    shallow, deep = (_case(results, model, 3, 16) for model in ("qwen3-8b", "qwen3-8b-72"))
    large = _case(results, "qwen3-8b", 3, 64)
    measured += [
        ("N = 16 over N = 4", _ratio(many, few), 4.2),
        ("72 layers over 36", _ratio(deep, shallow), 2.1),
        ("memory above imports, 3 x Qwen3-8B, r = 64 (MB)", large[memory], 150.0),
        (f"error in float32, condition {worst['condition']}", worst["gam, relative error"], 1e-5),
    ]
    rows = [{"what": what, "measured": value, "at most": bar} for what, value, bar in measured]
    peer = "PEFT svd over our mean, one module of 4096 x 4096"
    rows.append({"what": peer, "measured": results["module"]["ratio"], "at least": 500.0})
    return rows


def _ratio(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | str:
    """Return the seconds of one row over those of another."""
    if _UNMEASURED in (one["seconds"], other["seconds"]):
        return _UNMEASURED
    return float(one["seconds"] / other["seconds"])


def _case(
    results: dict[str, Any], model: str, count: int, rank: int, method: str = "gam"
) -> Mapping[str, Any]:
    """Return the row of a method in one case."""
    key = (model, count, rank, method)
    for row in results["rows"]:
        if (row["model"], row["N"], row["r"], row["method"]) == key:
            return row
    return dict.fromkeys(_FIGURES, _UNMEASURED)


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
