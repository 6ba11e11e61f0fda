"""Make preference pairs: the answer of a weak model is chosen, that of a weaker one rejected.

    python pairs.py --weak Qwen/Qwen3-4B --weaker Qwen/Qwen3-1.7B --out qwen3.jsonl \\
        --questions openai/gsm8k:main:train

Answers are appended to OUT.weak and OUT.weaker as they come, so a run that was stopped can be
continued. Questions are those of ask.py; --filtered needs their right answers.
"""

import argparse
import gc
import json
import re
from difflib import SequenceMatcher
from pathlib import Path

from ask import add_options, answer_form, answers, prompts, questions
from models import write_whole


def respond(name, asked, path, args):
    """Write the answers of a model, one JSON string per line; earlier complete lines are kept."""
    lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
    write_whole(path, "".join(line + "\n" for line in lines))
    rest = asked[len(lines) :]
    if not rest:
        return
    with open(path, "a", encoding="utf-8") as file:
        for answer in answers(name, rest, args, args.temperature, args.seed):
            file.write(json.dumps(answer) + "\n")
            file.flush()
    gc.collect()  # the next model needs the memory


def quality(answer, right):
    """Return how near an answer is to the right one: 1 if equal, 0 without a common character."""
    return SequenceMatcher(None, answer, right, autojunk=False).ratio()


def join(asked, weak, weaker, form="", right=None):
    """Yield pairs in TRL's form, where the answers differ.

    As in the paper, ``form`` is a regular expression for the chosen answer only. With the right
    answers only pairs whose chosen answer is nearer to the right one are kept.
    """
    known = right or [None] * len(asked)
    for prompt, chosen, rejected, answer in zip(asked, weak, weaker, known, strict=True):
        kept = chosen != rejected and re.search(form, chosen)
        if answer is not None:
            kept = kept and quality(chosen, answer) > quality(rejected, answer)
        if kept:
            yield {
                "prompt": prompt,
                "chosen": answer_form(prompt, chosen),
                "rejected": answer_form(prompt, rejected),
            }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weak", required=True)
    parser.add_argument("--weaker", required=True)
    parser.add_argument("--questions", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--format", default="", help="regular expression for the chosen answer")
    parser.add_argument(
        "--filtered", action="store_true", help="only pairs whose chosen answer is nearer to right"
    )
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--limit", type=int, help="upper limit for the number of questions")
    parser.add_argument("--seed", type=int, default=0)
    add_options(parser, tokens=1024, batch=16)
    args = parser.parse_args()

    rows = questions(args.questions)[: args.limit]
    right = [row.get("answer") for row in rows] if args.filtered else None
    if right and None in right:
        parser.error("--filtered needs an answer to every question")
    asked, parts = prompts(rows, args), []
    for which in ("weak", "weaker"):
        path = args.out.with_name(f"{args.out.name}.{which}")
        respond(getattr(args, which), asked, path, args)
        parts.append([json.loads(line) for line in path.read_text("utf-8").splitlines()])
    pairs = list(join(asked, *parts, args.format, right))
    if not pairs:
        raise SystemExit(
            "no pair is left: answers are equal, or no chosen answer has the format or is nearer"
        )
    write_whole(args.out, "".join(json.dumps(pair) + "\n" for pair in pairs))
    print(f"{len(pairs)} of {len(rows)} pairs in {args.out}")


if __name__ == "__main__":
    main()
