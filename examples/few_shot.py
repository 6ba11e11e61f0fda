"""Choose a merge by a few questions: of eleven points of the consensus family, the one with the likeliest answers.

    pip install "gam-merge[peft]" transformers
    python examples/few_shot.py BASE A B C --questions few.jsonl --out merged

few.jsonl: about four rows an adapter, {"prompt": "...", "completion": "..."}. The choice is that of benchmarks/lab.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import gam_merge as gm
from gam_merge.integrations.peft import with_adapter

POINTS = [{"p": p, "q": q, "rescale": "norm"} for p in (-0.5, -0.25, 0.0, 0.25) for q in (0.5, 1.0)]
POINTS += [{"p": p} for p in (-0.5, -0.25, 0.0)]  # at the consensus's own length; p = 0 is the mean


@torch.no_grad()
def nll(model: PeftModel, tokenizer: AutoTokenizer, rows: list[dict[str, str]]) -> float:
    """Nats per token of a completion, the mean over rows."""
    losses = []
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
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(arguments.base), arguments.adapters[0]
    )
    how = {
        "method": "consensus",
        "rank": sum(gm.load(adapter).rank for adapter in arguments.adapters),
    }
    found = []
    for params in POINTS:
        with with_adapter(model, gm.merge(arguments.adapters, params=params, **how).adapter):
            found.append(nll(model, tokenizer, rows))
        print(f"{found[-1]:.3f}  {params}")
    best = POINTS[found.index(min(found))]
    gm.merge(arguments.adapters, params=best, out=arguments.out, **how)
    print(f"wrote {arguments.out}: {best}")


if __name__ == "__main__":
    main()
