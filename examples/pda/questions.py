"""Make word problems with known answers, one JSON object per line, without a download.

python questions.py --count 64 --seed 1 --out prompts.jsonl
"""

import argparse
import json
import random
from pathlib import Path

from models import write_whole

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
NAMES = ("Ada", "Emmy", "Carl", "Leo", "Mary", "Sofia")


def question(rng):
    story, answer = rng.choice(STORIES)
    a, b = rng.randint(5, 20), rng.randint(2, 5)
    return {"question": story.format(name=rng.choice(NAMES), a=a, b=b), "answer": str(answer(a, b))}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    write_whole(args.out, "".join(json.dumps(question(rng)) + "\n" for _ in range(args.count)))


if __name__ == "__main__":
    main()
