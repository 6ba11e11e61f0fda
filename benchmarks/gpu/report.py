"""The tables of docs/benchmarks.md from gpu.json; what it lacks is called unmeasured."""

import json
from typing import Any

from benchmarks import page
from benchmarks.gpu import candidates, merges
from benchmarks.gpu.candidates import Operation
from benchmarks.measure import RESULTS, table

FILE = RESULTS / "gpu.json"
_TITLES = {"qwen3-8b": "Qwen3-8B", "llama3-70b": "Llama-3-70B", "smollm2-135m": "SmolLM2-135M"}
UNMEASURED = "unmeasured"

Row = dict[str, Any]


def read() -> dict[str, Any]:
    """Return the results, without a row if there are none."""
    return json.loads(FILE.read_text("utf-8")) if FILE.exists() else {"rows": []}


def write() -> None:
    """Write the tables into the page."""
    page.write("gpu", tables(read()))


def tables(results: dict[str, Any]) -> str:
    """Return where it was measured, merges, sizes of chunks and routines."""
    rows = results["rows"]
    parts = [_where(results), table(merge_rows(rows)), table(chunk_rows(rows))]
    for operation in candidates.OPERATIONS:
        taken = next(iter(operation.routines))
        parts.append(
            f"*{operation.name}*, in milliseconds, with the error. The library takes *{taken}*; "
            f"decided in {operation.decided_in}."
        )
        parts.append(table(routine_rows(rows, operation)))
    return "\n\n".join(parts)


def _where(results: dict[str, Any]) -> str:
    if not results["rows"]:
        return "There was no run on a GPU so far."
    on = results["machine"]
    return (
        f"Measured on {results['device']} next to {on['cores']} cores of {on['cpu']} with "
        f"{on['threads']} threads, torch {on['torch']}, in {results['seconds']:.0f} s."
    )


def merge_rows(rows: list[Row]) -> list[Row]:
    """Return the seconds of every rule in each case, with the largest error of all."""
    merged = [row for row in rows if row["what"] == "merge"]
    cases = dict.fromkeys((case.model, case.rank) for case in merges.CASES)
    cases |= dict.fromkeys((row["model"], row["r"]) for row in merged)
    methods = dict.fromkeys(row["method"] for row in merged) or {"every rule": None}
    lines: list[Row] = []
    for method in methods:
        of_method = {(row["model"], row["r"]): row for row in merged if row["method"] == method}
        line: Row = {"rule": method}
        for model, rank in cases:
            line[f"{_TITLES[model]}, r = {rank}"] = _seconds(of_method.get((model, rank)))
        errors = [row["error"] for row in of_method.values() if "error" in row]
        again = [row["same again"] for row in of_method.values() if "same again" in row]
        line["error"] = max(errors) if errors else UNMEASURED
        line["same again"] = ("yes" if all(again) else "no") if again else UNMEASURED
        lines.append(line)
    return lines


def routine_rows(rows: list[Row], operation: Operation) -> list[Row]:
    """Return, for each size of the stack, every routine and the fastest that is exact."""
    of_operation = [row for row in rows if row.get("operation") == operation.name]
    lines: list[Row] = []
    for size in dict.fromkeys(row["size"] for row in of_operation):
        of_size = {row["routine"]: row for row in of_operation if row["size"] == size}
        lines.append(_routine_row(operation, size, of_size))
    return lines or [_routine_row(operation, "every size", {})]


def _routine_row(operation: Operation, size: str, of_size: dict[str, Row]) -> Row:
    exact = [row for row in of_size.values() if row.get("error", 1.0) <= operation.exact]
    fastest = min(exact, key=lambda row: row["seconds"], default={"routine": UNMEASURED})
    cells = {name: _milliseconds(of_size.get(name)) for name in operation.routines}
    return {"stack": size, **cells, "fastest that is exact": fastest["routine"]}


def chunk_rows(rows: list[Row]) -> list[Row]:
    """Return one row: ``gam`` by how much is merged at a time."""
    measured = {row["MB"]: row["seconds"] for row in rows if row["what"] == "chunk"}
    line: Row = {"rule": "gam", "case": "the first", "decided in": "`_CHUNK_BYTES` of `walk.py`"}
    return [line | {f"{size} MB": measured.get(size, UNMEASURED) for size in merges.CHUNKS}]


def _seconds(row: Row | None) -> str:
    """Return the seconds of a merge, and how many times as long the CPU takes."""
    if row is None:
        return UNMEASURED
    if "failed" in row:
        return f"failed: {row['failed']}"
    if "CPU (s)" not in row:
        return f"{row['seconds']:.3g}"
    return f"{row['seconds']:.3g} ({row['CPU (s)'] / row['seconds']:.1f} x)"


def _milliseconds(row: Row | None) -> str:
    if row is None:
        return UNMEASURED
    if "failed" in row:
        return f"failed: {row['failed']}"
    return f"{1e3 * row['seconds']:.3g} ({row['error']:.0e})"
