"""Make preference pairs that differ in one countable quality, the axis: an answer that has it once
is chosen over the same answer without it. Both are short answers of a model, marked by a program.

python axes.py --axis bold --model smollm2 --questions questions.jsonl --out bold.jsonl
"""

import argparse
import json
import random
import re
from pathlib import Path

from ask import add_options, prompts, questions
from models import write_whole
from pairs import join, respond

OPENINGS = (
    "Have you ever wondered?",
    "Where to begin?",
    "What makes it special?",
    "Do you know the answer?",
    "Shall we have a look?",
)


def bold(words, rng):
    """Set one of the longer words in bold type."""
    lengths = [len(word) for word in words]
    places = [i for i, length in enumerate(lengths) if length >= min(5, max(lengths))]
    place = rng.choice(places)
    marked = re.sub(r"(\w[\w'-]*)", r"**\1**", words[place], count=1)
    return " ".join([*words[:place], marked, *words[place + 1 :]])


def bullets(words, rng):
    """Move the second half to the point of a list."""
    half = len(words) // 2
    return " ".join(words[:half]) + "\n- " + " ".join(words[half:])


def opening(words, rng):
    """Begin with a question to the reader."""
    return " ".join([rng.choice(OPENINGS), *words])


AXES = {axis.__name__: axis for axis in (bold, bullets, opening)}
COUNTED = {"bold": r"\*\*\w[^*\n]*\*\*", "bullets": r"(?m)^ *[-*] \w", "opening": r"\w\?"}


def counts(text):
    """Count what each axis is about."""
    return {axis: len(re.findall(pattern, text)) for axis, pattern in COUNTED.items()}


def first_sentence(text, most=20):
    """Return the words of the first sentence that has at least six, up to ``most``."""
    sentences = re.split(r"(?<=[.!?])\s+", text.replace("*", ""))
    long = [sentence for sentence in sentences if len(sentence.split()) > 5]
    return (long or sentences)[0].split()[:most]


def marked(axis, asked, answers, rng):
    """Yield question, first sentence of the answer with the mark, and without it."""
    for question, answer in zip(asked, answers, strict=True):
        words = first_sentence(answer)
        if len(words) > 1:
            plain, sentence = " ".join(words), AXES[axis](words, rng)
            if sentence != plain:
                yield question, sentence, plain


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axis", choices=tuple(AXES), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--questions", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True, help="kept for the other axes")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    add_options(parser, tokens=40, batch=32)
    args = parser.parse_args()

    all_prompts = prompts(questions(args.questions), args)
    respond(args.model, all_prompts, args.answers, args)
    answers = [json.loads(line) for line in args.answers.read_text("utf-8").splitlines()]
    pairs = []
    rng = random.Random(args.seed)
    for prompt, chosen, rejected in marked(args.axis, all_prompts, answers, rng):
        pairs += join([prompt], [chosen], [rejected])
    write_whole(args.out, "".join(json.dumps(pair) + "\n" for pair in pairs))
    print(f"{len(pairs)} pairs in {args.out}")


if __name__ == "__main__":
    main()
