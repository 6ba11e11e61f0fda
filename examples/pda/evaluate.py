"""Measure a model, and adapters on it: exact match on questions with known answers and the NLL of
these, or the axes of answers (see axes.py).

    python evaluate.py --model Qwen/Qwen3-8B --questions test.jsonl --out figures.json \\
        --adapters deltas/qwen3 merged
    python evaluate.py --model Qwen/Qwen3-8B --harness gsm8k,mmlu --out figures.json \\
        --adapters merged

The last number of an answer (within \\boxed{}, if there is one) is compared with that of the row's
"answer"; without a number the last lines are compared, letter by letter. Questions without an
"answer" are for the axes: counts per answer, the share of answers that count more than one, as no
example does, and the NLL of plain text, the price. --harness needs lm-evaluation-harness (pip
install lm-eval). Figures that are already in OUT are kept.
"""

import argparse
import json
import re
from pathlib import Path

from ask import add_options, generated, prompts, questions, tokens
from axes import COUNTED, counts
from models import load, need, write_whole


def final(text):
    """Return the part of an answer that is compared."""
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    text = boxed[-1] if boxed else text
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    if numbers:
        return numbers[-1].replace(",", "").removesuffix(".0")
    return text.strip().split("\n")[-1].strip()


def on_tasks(model, tokenizer, asked, args):
    """Return the share of questions that are answered correctly, and the NLL of right answers."""
    all_prompts = prompts(asked, args)
    right = [row["answer"] for row in asked]
    rows = []
    for prompt, answer in zip(all_prompts, right, strict=True):
        rows.append(tokens(tokenizer, prompt, answer))
    given = generated(model, tokenizer, all_prompts, args)
    equal = [final(answer) == final(known) for answer, known in zip(given, right, strict=True)]
    likelihood = nll(model, rows)
    return {"exact match": sum(equal) / len(asked), "NLL": likelihood, "questions": len(asked)}


def on_axes(model, tokenizer, asked, args):
    """Return the mean count on every axis, how often it is above every example, and the price."""
    given = generated(model, tokenizer, prompts(asked, args), args)
    counted = [counts(answer) for answer in given]
    figures = {axis: sum(row[axis] for row in counted) / len(counted) for axis in COUNTED}
    beyond = {axis: sum(row[axis] > 1 for row in counted) / len(counted) for axis in COUNTED}
    prose = Path(__file__).with_name("prose.txt").read_text("utf-8").split("\n\n")
    rows = [([], tokenizer(" ".join(paragraph.split())).input_ids) for paragraph in prose]
    return {**figures, "beyond": beyond, "prose NLL": nll(model, rows)}


def nll(model, rows):
    """Return the NLL per token of targets, each after the tokens before it, in nats."""
    (torch,) = need("torch")
    total, count = 0.0, 0
    for before, target in rows:
        row = torch.tensor([[*before, *target]], device=model.device)
        labels = torch.tensor([[-100] * len(before) + target], device=model.device)
        with torch.no_grad():
            loss = model(input_ids=row, labels=labels).loss  # the mean over the target
        predicted = len(target) if before else len(target) - 1  # all but the first of the row
        total, count = total + loss.item() * predicted, count + predicted
    return total / count


def harness(model, tokenizer, args):
    """Return the figures of lm-evaluation-harness, for all tasks and metrics."""
    try:
        import lm_eval
    except ImportError:
        raise SystemExit("--harness needs lm-evaluation-harness: pip install lm-eval") from None
    wrapped = lm_eval.models.huggingface.HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=args.batch
    )
    return lm_eval.simple_evaluate(wrapped, tasks=args.harness.split(","))["results"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapters", type=Path, nargs="*", default=[])
    parser.add_argument("--questions", help="see ask.py")
    parser.add_argument("--harness", help="tasks of lm-evaluation-harness, separated by commas")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    add_options(parser, tokens=1024, batch=16)
    args = parser.parse_args()
    if not (args.questions or args.harness):
        parser.error("give --questions or --harness")

    figures = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    subjects = {"student": None} | {adapter.name: adapter for adapter in args.adapters}
    missing = {name: adapter for name, adapter in subjects.items() if name not in figures}
    if not missing:
        return
    (peft,) = need("peft")
    model, tokenizer = load(args.model)
    asked = questions(args.questions)[: args.limit] if args.questions else []
    for name, adapter in missing.items():
        subject = peft.PeftModel.from_pretrained(model, adapter).eval() if adapter else model
        if args.harness:
            figures[name] = harness(subject, tokenizer, args)
        elif "answer" in asked[0]:
            figures[name] = on_tasks(subject, tokenizer, asked, args)
        else:
            figures[name] = on_axes(subject, tokenizer, asked, args)
        write_whole(args.out, json.dumps(figures, indent=2) + "\n")
        if adapter:
            model = subject.unload()


if __name__ == "__main__":
    main()
