"""Make questions, one JSON object per line, without a download.

They are word problems with known answers, small tasks of six families (addition, sorting, spelling
and more, see ../smollm.py), or open questions about everyday things.

python questions.py --count 64 --seed 1 --out prompts.jsonl
"""

import argparse
import json
import random
from pathlib import Path

from models import load, write_whole

STORIES = (
    (
        "{name} has {a} apples and buys {b} more. How many apples does {name} have?",
        lambda a, b: a + b,
    ),
    ("{name} has {a} coins and gives {b} away. How many coins are left?", lambda a, b: a - b),
    (
        "{name} fills {b} boxes with {a} pens each. How many pens are in the boxes?",
        lambda a, b: a * b,
    ),
)
THINGS = Path(__file__).with_name("things.txt").read_text("utf-8").split()
ABOUT = ("Tell me about {}.", "Why do people like {}?", "What should I know about {}?")
NAMES = ("Ada", "Emmy", "Carl", "Leo", "Mary", "Sofia")


def open_questions(rng, count):
    """Return different questions without an answer; more of them begin with the same ones."""
    every = [about.format(thing) for thing in THINGS for about in ABOUT]
    rng.shuffle(every)
    return [{"question": question} for question in every[:count]]


def word_problem(rng):
    story, answer = rng.choice(STORIES)
    a, b = rng.randint(5, 20), rng.randint(2, 5)
    return {"question": story.format(name=rng.choice(NAMES), a=a, b=b), "answer": str(answer(a, b))}


def tasks(seed, skip, count):
    """Return questions of every family, ``count`` of each after the first ``skip``."""
    _, tokenizer = load("smollm2")  # its vocabulary has the words
    from examples.smollm import TASKS, split  # found since ``load``

    rows = []
    for family in TASKS:
        _, pairs = split(family, tokenizer, seed=seed, sizes=(skip, count))
        rows += [{"question": question, "answer": answer} for question, answer in pairs]
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=64, help="number, of tasks for each family")
    parser.add_argument("--seed", type=int, default=0)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--open", action="store_true", help="open questions, all different")
    kind.add_argument("--tasks", action="store_true", help="small tasks of six families")
    parser.add_argument("--skip", type=int, default=0, help="questions left out at the beginning")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    count = args.skip + args.count
    if args.tasks:
        rows = tasks(args.seed, args.skip, args.count)
    elif args.open:
        rows = open_questions(rng, count)[args.skip :]
    else:
        rows = [word_problem(rng) for _ in range(count)][args.skip :]
    write_whole(args.out, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
