"""Choose a merge from a few labelled questions: eleven settings of ``consensus`` are tried.

The one under which the expected answers are most likely is written.

    pip install "gam-merge[peft]" transformers
    python examples/few_shot.py BASE A B C --questions few.jsonl --out merged

few.jsonl has about four rows per adapter: {"prompt": "...", "completion": "..."}. The settings are
those of benchmarks/lab.
"""

import argparse
import json
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import gam_merge as gm
from gam_merge.integrations.peft import with_adapter

GRID = product((-0.5, -0.25, 0.0, 0.25), (0.5, 1.0))
POINTS = [{"p": p, "q": q, "rescale": "norm"} for p, q in GRID]
POINTS += [{"p": p} for p in (-0.5, -0.25, 0.0)]  # at its own norm; p = 0 is the mean


@torch.no_grad()
def nll(model: PeftModel, tokenizer: AutoTokenizer, rows: list[dict[str, str]]) -> float:
    """Return the nats per token of a completion, the mean over rows."""
    losses: list[float] = []
    for row in rows:
        tokens = tokenizer(row["prompt"] + row["completion"], return_tensors="pt").input_ids
        labels = tokens.clone()
        labels[:, : len(tokenizer(row["prompt"]).input_ids)] = -100  # the prompt does not count
        losses.append(model(tokens, labels=labels).loss.item())
    return fmean(losses)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base")
    parser.add_argument("adapters", nargs="+")
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("merged"))
    arguments = parser.parse_args()

    rows = [json.loads(line) for line in arguments.questions.read_text("utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    base = AutoModelForCausalLM.from_pretrained(arguments.base)
    model = PeftModel.from_pretrained(base, arguments.adapters[0])
    rank = sum(gm.load(adapter).rank for adapter in arguments.adapters)
    merge = partial(gm.merge, arguments.adapters, method="consensus", rank=rank)
    losses: list[float] = []
    for params in POINTS:
        with with_adapter(model, merge(params=params).adapter):
            losses.append(nll(model, tokenizer, rows))
        print(f"{losses[-1]:.3f}  {params}")
    best = POINTS[losses.index(min(losses))]
    merge(params=best, out=arguments.out)
    print(f"wrote {arguments.out}: {best}")


if __name__ == "__main__":
    main()
