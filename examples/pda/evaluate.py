"""Exact match of a model, and of adapters on it, on questions with known answers.

    python evaluate.py --model Qwen/Qwen3-8B --questions test.jsonl --adapters deltas/qwen3 merged --out figures.json
    python evaluate.py --model Qwen/Qwen3-8B --harness gsm8k,mmlu --adapters merged --out figures.json

The last number of an answer (what stands in \\boxed{}, if anything does) is compared with that of the row's "answer";
without a number the last line is. --harness needs lm-evaluation-harness (pip install lm-eval). Figures that are in
OUT already are kept.
"""

import argparse
import json
import re
from pathlib import Path

from models import load, need, write_whole
from pairs import messages, questions


def final(text):
    """What an answer comes down to."""
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    text = boxed[-1] if boxed else text
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return (
        numbers[-1].replace(",", "").removesuffix(".0")
        if numbers
        else text.strip().split("\n")[-1].strip().lower()
    )


def exact_match(model, tokenizer, asked, args):
    """The share of questions that are answered right, by greedy decoding."""
    (torch,) = need("torch")
    right = 0
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
        answers = tokenizer.batch_decode(
            out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right += sum(final(a) == final(row["answer"]) for a, row in zip(answers, rows, strict=True))
    return {"exact match": right / len(asked), "questions": len(asked)}


def harness(model, tokenizer, args):
    """The figures of lm-evaluation-harness, all tasks and metrics."""
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
    missing = [a for a in [None, *args.adapters] if (a.name if a else "student") not in figures]
    if not missing:
        return
    (peft,) = need("peft")
    model, tokenizer = load(args.model)
    asked = questions(args.questions)[: args.limit] if args.questions else []
    for adapter in missing:
        here = peft.PeftModel.from_pretrained(model, adapter).eval() if adapter else model
        found = (
            exact_match(here, tokenizer, asked, args) if asked else harness(here, tokenizer, args)
        )
        figures[adapter.name if adapter else "student"] = found
        write_whole(args.out, json.dumps(figures, indent=2) + "\n")
        if adapter:
            model = here.unload()


if __name__ == "__main__":
    main()
