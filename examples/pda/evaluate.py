"""Measure a model, and adapters on it: exact match on questions with known answers, or the axes of
answers (see axes.py).

    python evaluate.py --model Qwen/Qwen3-8B --questions test.jsonl --out figures.json \\
        --adapters deltas/qwen3 merged
    python evaluate.py --model Qwen/Qwen3-8B --harness gsm8k,mmlu --out figures.json \\
        --adapters merged

The last number of an answer (within \\boxed{}, if there is one) is compared with that of the row's
"answer"; without a number the last lines are compared. Questions without an "answer" are for the
axes: counts per answer, the share of answers that count more than one, as no example does, and the
NLL of plain text, the price. --harness needs lm-evaluation-harness (pip install lm-eval). Figures
that are already in OUT are kept.
"""

import argparse
import json
import re
from pathlib import Path

from axes import COUNTED, counts
from models import load, need, write_whole
from pairs import messages, questions


def final(text):
    """Return the part of an answer that is compared."""
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    text = boxed[-1] if boxed else text
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    if numbers:
        return numbers[-1].replace(",", "").removesuffix(".0")
    return text.strip().split("\n")[-1].strip().lower()


def answers(model, tokenizer, asked, args):
    """Return the greedy answer to every question."""
    (torch,) = need("torch")
    texts = []
    for start in range(0, len(asked), args.batch):
        rows = asked[start : start + args.batch]
        batch = tokenizer.apply_chat_template(
            [messages(row["question"], args.system, args.template) for row in rows],
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        batch.pop("token_type_ids", None)
        with torch.no_grad():
            out = model.generate(
                **batch,
                do_sample=False,
                max_new_tokens=args.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
        answer_tokens = out[:, batch["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(answer_tokens, skip_special_tokens=True)
    return texts


def exact_match(model, tokenizer, asked, args):
    """Return the share of questions that are answered correctly."""
    given = answers(model, tokenizer, asked, args)
    right = sum(final(a) == final(row["answer"]) for a, row in zip(given, asked, strict=True))
    return {"exact match": right / len(asked), "questions": len(asked)}


def on_axes(model, tokenizer, asked, args):
    """Return the mean count on every axis, how often it is above every example, and the price."""
    counted = [counts(answer) for answer in answers(model, tokenizer, asked, args)]
    figures = {axis: sum(row[axis] for row in counted) / len(counted) for axis in COUNTED}
    beyond = {axis: sum(row[axis] > 1 for row in counted) / len(counted) for axis in COUNTED}
    return {**figures, "beyond": beyond, "prose NLL": prose_nll(model, tokenizer)}


def prose_nll(model, tokenizer):
    """Return the NLL per token of the paragraphs of prose.txt, in nats."""
    (torch,) = need("torch")
    paragraphs = Path(__file__).with_name("prose.txt").read_text("utf-8").split("\n\n")
    total, count = 0.0, 0
    for paragraph in paragraphs:
        tokens = tokenizer(" ".join(paragraph.split()), return_tensors="pt").to(model.device)
        with torch.no_grad():
            loss = model(**tokens, labels=tokens["input_ids"]).loss  # the mean over all but one
        predicted = tokens["input_ids"].shape[1] - 1
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
    parser.add_argument("--questions", help="as for pairs.py")
    parser.add_argument("--harness", help="tasks of lm-evaluation-harness, separated by commas")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--system", default="")
    parser.add_argument("--template", default="{question}")
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--limit", type=int)
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
            figures[name] = exact_match(subject, tokenizer, asked, args)
        else:
            figures[name] = on_axes(subject, tokenizer, asked, args)
        write_whole(args.out, json.dumps(figures, indent=2) + "\n")
        if adapter:
            model = subject.unload()


if __name__ == "__main__":
    main()
