"""Make preference pairs: the answer of a weak model is chosen, that of a weaker one rejected.

    python pairs.py --weak Qwen/Qwen3-4B --weaker Qwen/Qwen3-1.7B --out qwen3.jsonl \\
        --questions openai/gsm8k:main:train

Questions are a JSONL file with "question" (and "answer"), or DATASET[:CONFIG]:SPLIT for `datasets`.
Answers are appended to OUT.weak and OUT.weaker as they come, so a run that was stopped can be
continued. vLLM is used if it is installed, else transformers.
"""

import argparse
import gc
import json
import re
from importlib.util import find_spec
from pathlib import Path

from models import load, need, write_whole


def questions(source):
    """Return the rows of a JSONL file or of a dataset."""
    if Path(source).exists():
        return [json.loads(line) for line in Path(source).read_text("utf-8").splitlines()]
    (datasets,) = need("datasets")
    *name, split = source.split(":")
    return list(datasets.load_dataset(*name, split=split))


def messages(question, system, template):
    """Return a conversation that asks the question."""
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": template.format(question=question)}]


def respond(name, conversations, path, args):
    """Write the answers of a model, one JSON string per line; earlier complete lines are kept."""
    lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
    write_whole(path, "".join(line + "\n" for line in lines))
    rest = conversations[len(lines) :]
    if not rest:
        return
    if find_spec("vllm") and "?" not in name and not name.startswith(("tiny:", "smollm2")):
        answers = with_vllm(name, rest, args)
    else:
        answers = with_transformers(name, rest, args)
    with open(path, "a", encoding="utf-8") as file:
        for answer in answers:
            file.write(json.dumps(answer) + "\n")
            file.flush()
    gc.collect()  # the next model needs the memory


def with_vllm(name, conversations, args):
    import vllm

    sampling = vllm.SamplingParams(
        temperature=args.temperature, max_tokens=args.max_new_tokens, seed=args.seed
    )
    model = vllm.LLM(name, seed=args.seed)
    for start in range(0, len(conversations), 512):
        for result in model.chat(conversations[start : start + 512], sampling, use_tqdm=False):
            yield result.outputs[0].text


def with_transformers(name, conversations, args):
    (torch,) = need("torch")
    model, tokenizer = load(name)
    sampling = {"do_sample": False}
    if args.temperature:
        sampling = {"do_sample": True, "temperature": args.temperature}
    for start in range(0, len(conversations), args.batch):
        torch.manual_seed(args.seed + start)
        batch = tokenizer.apply_chat_template(
            conversations[start : start + args.batch],
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        batch.pop("token_type_ids", None)
        with torch.no_grad():
            out = model.generate(
                **batch,
                **sampling,
                max_new_tokens=args.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
        answer_tokens = out[:, batch["input_ids"].shape[1] :]
        yield from tokenizer.batch_decode(answer_tokens, skip_special_tokens=True)


def join(conversations, weak, weaker, form):
    """Yield pairs in TRL's conversational form.

    As in the paper, the filter looks at the chosen answer only.
    """
    for prompt, *answers in zip(conversations, weak, weaker, strict=True):
        chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in answers)
        if chosen != rejected and re.search(form, answers[0]):
            yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weak", required=True)
    parser.add_argument("--weaker", required=True)
    parser.add_argument("--questions", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--system", default="")
    parser.add_argument("--template", default="{question}")
    parser.add_argument("--format", default="", help="regular expression for the chosen answer")
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--limit", type=int, help="upper limit for the number of questions")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    asked = questions(args.questions)[: args.limit]
    conversations = [messages(row["question"], args.system, args.template) for row in asked]
    parts = []
    for which in ("weak", "weaker"):
        path = args.out.with_name(f"{args.out.name}.{which}")
        respond(getattr(args, which), conversations, path, args)
        parts.append([json.loads(line) for line in path.read_text("utf-8").splitlines()])
    pairs = list(join(conversations, *parts, args.format))
    if not pairs:
        raise SystemExit("no pair is left: answers are equal, or no chosen answer has the format")
    write_whole(args.out, "".join(json.dumps(pair) + "\n" for pair in pairs))
    print(f"{len(pairs)} of {len(asked)} pairs in {args.out}")


if __name__ == "__main__":
    main()
