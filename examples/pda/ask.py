"""Questions, how a model is asked them, and what it answers.

Questions are a JSONL file with "question" (and "answer"), or DATASET[:CONFIG]:SPLIT for `datasets`.
A prompt is a conversation in the model's chat template; with --plain it is the template as text,
and an answer is one line.
"""

import json
from importlib.util import find_spec
from pathlib import Path

from models import load, need


def add_options(parser, *, tokens, batch):
    """Add the options that say how a model is asked."""
    parser.add_argument("--system", default="", help="system message")
    parser.add_argument("--template", default="{question}")
    parser.add_argument("--plain", action="store_true", help="prompts without a chat template")
    parser.add_argument("--max-new-tokens", type=int, default=tokens)
    parser.add_argument("--batch", type=int, default=batch, help="questions at a time")


def questions(source):
    """Return the rows of a JSONL file or of a dataset."""
    if Path(source).exists():
        return [json.loads(line) for line in Path(source).read_text("utf-8").splitlines()]
    (datasets,) = need("datasets")
    *name, split = source.split(":")
    return list(datasets.load_dataset(*name, split=split))


def prompts(rows, args):
    """Return the prompt of every question: messages, or text if it is plain."""
    if args.plain:
        return [args.template.format(question=row["question"]) for row in rows]
    return [messages(row["question"], args.system, args.template) for row in rows]


def messages(question, system, template):
    """Return a conversation that asks the question."""
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": template.format(question=question)}]


def answer_form(prompt, answer):
    """Return an answer in the form in which TRL takes it with the prompt."""
    if isinstance(prompt, str):
        return f" {answer}\n"
    return [{"role": "assistant", "content": answer}]


def tokens(tokenizer, prompt, answer):
    """Return the tokens of a prompt and of its answer, as the model reads them."""
    form = answer_form(prompt, answer)
    if isinstance(prompt, str):
        return tokenizer(prompt).input_ids, _alone(tokenizer, form)
    before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*prompt, *form], tokenize=False)
    if not whole.startswith(before):
        raise SystemExit("the chat template changes a prompt that has an answer: try --plain")
    return _alone(tokenizer, before), _alone(tokenizer, whole.removeprefix(before))


def _alone(tokenizer, text):
    """Return the tokens of a text without those that begin or end a row."""
    return tokenizer(text, add_special_tokens=False).input_ids


def answers(name, asked, args, temperature, seed):
    """Yield the answers of a model by name. vLLM is used if it is installed."""
    if find_spec("vllm") and "?" not in name and not name.startswith(("tiny:", "smollm2")):
        yield from _with_vllm(name, asked, args, temperature, seed)
    else:
        yield from generated(*load(name), asked, args, temperature, seed)


def generated(model, tokenizer, asked, args, temperature=0.0, seed=0):
    """Yield the answers of a model of transformers; greedy ones without a temperature."""
    (torch,) = need("torch")
    sampling = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature}
    if args.plain:
        sampling["eos_token_id"] = tokenizer("\n").input_ids[-1]
    for start in range(0, len(asked), args.batch):
        torch.manual_seed(seed + start)
        batch = _encoded(tokenizer, asked[start : start + args.batch]).to(model.device)
        batch.pop("token_type_ids", None)
        with torch.no_grad():
            out = model.generate(
                **batch,
                **sampling,
                max_new_tokens=args.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
        answer_tokens = out[:, batch["input_ids"].shape[1] :]
        for text in tokenizer.batch_decode(answer_tokens, skip_special_tokens=True):
            yield _first_line(text) if args.plain else text


def _encoded(tokenizer, asked):
    """Return the tokens of prompts, padded on the left."""
    if isinstance(asked[0], str):
        return tokenizer(asked, padding=True, padding_side="left", return_tensors="pt")
    return tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )


def _with_vllm(name, asked, args, temperature, seed):
    import vllm

    sampling = vllm.SamplingParams(
        temperature=temperature,
        max_tokens=args.max_new_tokens,
        seed=seed,
        stop="\n" if args.plain else None,
    )
    model = vllm.LLM(name, seed=seed)
    ask = model.generate if args.plain else model.chat
    for start in range(0, len(asked), 512):
        for result in ask(asked[start : start + 512], sampling, use_tqdm=False):
            text = result.outputs[0].text
            yield _first_line(text) if args.plain else text


def _first_line(text):
    return text.split("\n")[0].strip()
