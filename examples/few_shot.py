"""Choose a merge from a few labelled questions: gam_merge.search tries settings of ``consensus``.

The one under which the expected answers are most likely is written.

    pip install "gam-merge[peft]" transformers
    python examples/few_shot.py BASE A B C --questions few.jsonl --out merged

few.jsonl has about four rows per adapter: {"prompt": "...", "completion": "..."}. The range is that
of benchmarks/lab, at the norm of the adapters. OUT-search holds every trial and the best recipe.
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

VARY = ("params.p=-0.5:0.25", "params.q=0.5:1")


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
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("merged"))
    arguments = parser.parse_args()

    rows = [json.loads(line) for line in arguments.questions.read_text("utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    base = AutoModelForCausalLM.from_pretrained(arguments.base)
    model = PeftModel.from_pretrained(base, arguments.adapters[0])

    def score(adapter: Path) -> float:
        with with_adapter(model, gm.load(adapter)):
            return nll(model, tokenizer, rows)

    sources = [{"path": str(Path(path).absolute())} for path in arguments.adapters]
    recipe = {"method": "consensus", "params": {"rescale": "norm"}, "sources": sources}
    start = arguments.out.with_name(f"{arguments.out.name}.yaml")
    start.write_text(json.dumps(recipe), "utf-8")  # JSON is YAML
    trials = arguments.out.with_name(f"{arguments.out.name}-search")
    found = gm.search(start, score, trials, trials=arguments.trials, vary=VARY, goal="min")
    for trial in found.trials:
        print(f"{trial.score:.3f}  {', '.join(trial.overrides)}")
    gm.merge_recipe(found.recipe, out=arguments.out)
    print(f"wrote {arguments.out}: {', '.join(found.best.overrides)}")


if __name__ == "__main__":
    main()
