"""Many merges of the same adapters, with a table: on processes, a Dask cluster or Ray.

    pip install gam-merge "dask[distributed]"
    python examples/sweep.py examples/adapters/addition examples/adapters/sorting --on dask

To join a cluster elsewhere, give its --address. Run it again after a failure, and it does the rest.
"""

import argparse
import csv
import json
from hashlib import sha256
from pathlib import Path

import numpy
import yaml
from executors import executor

import gam_merge as gm

METHODS = ("gam", "consensus", "mean", "tsvm", "ties")
COLUMNS = ("recipe", "method", "weights", "norm_ratio", "survival", "error")


def write_recipes(adapters: list[Path], folder: Path, count: int) -> list[Path]:
    """Write methods with random weights, each to a file that is named after what it says."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(path.absolute()) for path in adapters]
    draws = numpy.random.default_rng(0).dirichlet([1.0] * len(paths), size=count).round(3)
    files: list[Path] = []
    for i in range(count):
        weights = draws[i // len(METHODS)].tolist()
        sources = [{"path": path, "weight": w} for path, w in zip(paths, weights, strict=True)]
        text = yaml.safe_dump({"method": METHODS[i % len(METHODS)], "sources": sources})
        file = folder / f"{sha256(text.encode()).hexdigest()[:12]}.yaml"
        file.write_text(text)
        files.append(file)
    return files


def main() -> None:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=text)
    parser.add_argument("adapters", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("sweep"))
    parser.add_argument("--count", type=int, default=200, help="number of recipes")
    parser.add_argument("--on", choices=("processes", "dask", "ray"), default="processes")
    parser.add_argument("--workers", type=int, default=2, help="processes on this machine")
    parser.add_argument("--address", help="of a cluster")
    arguments = parser.parse_args()
    recipes = write_recipes(arguments.adapters, arguments.out / "recipes", arguments.count)
    merges = arguments.out / "merges"
    reports = {recipe: merges / recipe.stem / "merge_report.json" for recipe in recipes}
    rest = [recipe for recipe, report in reports.items() if not report.exists()]
    print(f"{len(recipes)} recipes, {len(recipes) - len(rest)} merged before", flush=True)
    items: tuple[gm.BatchItem, ...] = ()
    if rest:
        with executor(arguments.on, arguments.workers, arguments.address) as pool:
            items = gm.batch(rest, merges, force=True, executor=pool)
    errors = {item.recipe: item.error for item in items if item.error}
    with open(arguments.out / "results.csv", "w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        table.writeheader()
        for recipe, report in reports.items():
            figures = json.loads(report.read_text()) if report.exists() else {}
            table.writerow({**figures, "recipe": recipe.stem, "error": errors.get(recipe)})
    print(f"{len(errors)} failed; wrote {arguments.out / 'results.csv'}")
    raise SystemExit(len(errors) > 0)


if __name__ == "__main__":
    main()
