"""Preference tuning in one short loop: DPO (arXiv 2305.18290) and ORPO (arXiv 2403.07691).

Only tokens of answers count, also in the likelihood term of ORPO, which TRL takes over prompts,
too. A model is its own reference as long as its factors B are zero, so the reference's
log-probabilities are taken once, before the first step. The loop needs torch, transformers and
PEFT alone.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from examples.smollm import BATCH, answer_logits, one_line, with_adapter, write

Form = Callable[[str, str], tuple[str, str]]  # question and answer to texts of prompt and answer


class Preference(NamedTuple):
    """A question, the answer that is chosen, and the one that is rejected."""

    question: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Tuning:
    """The optimiser. Its defaults are table 5 of arXiv 2606.00357, but for the batch of 128."""

    objective: Literal["dpo", "orpo"] = "dpo"
    rank: int = 64  # alpha is twice the rank
    lr: float = 1e-5  # of AdamW, along a cosine after the warm-up
    steps: int = 59
    batch: int = 4  # pairs per step
    beta: float = 0.1
    warm_up: float = 0.1  # share of the steps


class Answers(NamedTuple):
    """Log-probabilities of answers, summed over their tokens, and the number of tokens."""

    total: Tensor  # (answers,), nats
    tokens: Tensor  # (answers,)

    @property
    def mean(self) -> Tensor:
        """The log-probability per token."""
        return self.total / self.tokens


def log_probs(
    model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], form: Form = one_line
) -> Answers:
    """Return the log-probability of each answer, given its question."""
    logits, targets, index = answer_logits(model, tokenizer, list(pairs), form)
    of_tokens = -F.cross_entropy(logits, targets, reduction="none")  # (tokens,)
    total = of_tokens.new_zeros(len(pairs)).index_add(0, index, of_tokens)
    return Answers(total, torch.bincount(index, minlength=len(pairs)))


@torch.no_grad()
def margins(
    model: Any, tokenizer: Any, preferences: Sequence[Preference], form: Form = one_line
) -> Tensor:
    """Return log p(chosen) - log p(rejected) of each preference, in nats, without gradients.

    An answer that several preferences share is scored once, and answers of like length together.
    """
    answers = {(p.question, p.chosen) for p in preferences}
    answers |= {(p.question, p.rejected) for p in preferences}
    by_length = sorted(answers, key=lambda pair: (len(pair[0] + pair[1]), pair))
    score: dict[tuple[str, str], Tensor] = {}
    for start in range(0, len(by_length), BATCH):
        batch = by_length[start : start + BATCH]
        score |= zip(batch, log_probs(model, tokenizer, batch, form).total, strict=True)
    less = [score[p.question, p.chosen] - score[p.question, p.rejected] for p in preferences]
    return torch.stack(less)


def _both(
    model: Any, tokenizer: Any, preferences: Sequence[Preference], form: Form
) -> tuple[Answers, Answers]:
    """Return the chosen and the rejected answers, from one forward pass."""
    n = len(preferences)
    rows = [(p.question, p.chosen) for p in preferences]
    rows += [(p.question, p.rejected) for p in preferences]
    total, tokens = log_probs(model, tokenizer, rows, form)
    return Answers(total[:n], tokens[:n]), Answers(total[n:], tokens[n:])


def dpo(margins: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Return DPO's loss of a batch of margins, given those of the reference."""
    return -F.logsigmoid(beta * (margins - reference)).mean()


def orpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Return ORPO's odds-ratio loss, from log-probabilities per token."""
    odds = chosen - rejected - torch.log1p(-chosen.exp()) + torch.log1p(-rejected.exp())
    return -beta * F.logsigmoid(odds).mean()


def tuned(
    base: Any,
    tokenizer: Any,
    preferences: Sequence[Preference],
    tuning: Tuning,
    *,
    init: int,
    seed: int = 0,
    form: Form = one_line,
    start: Path | None = None,
) -> Any:
    """Return the base with an adapter tuned on preferences; ``unload`` it to have the base back.

    Args:
        base: model without adapters.
        tokenizer: its tokenizer.
        preferences: pairs; every epoch goes through all of them in another order.
        tuning: the optimiser.
        init: seed of the initial factors A.
        seed: seed of the order.
        form: texts of prompt and answer.
        start: directory of an adapter that is tuned on, and is the reference, in place of a new
            one.

    Raises:
        ValueError: there are no preferences.
    """
    if not preferences:
        raise ValueError("preferences must have at least one pair, got none")
    if start:
        model = PeftModel.from_pretrained(base, start, is_trainable=True)
    else:
        model = with_adapter(base, rank=tuning.rank, seed=init)
    factors = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(factors, lr=tuning.lr, weight_decay=0.0)
    warm_up = round(tuning.warm_up * tuning.steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, warm_up, tuning.steps)
    reference = torch.zeros(len(preferences))
    if tuning.objective == "dpo":
        reference = margins(model, tokenizer, preferences, form)
    order = _order(len(preferences), seed)
    for _ in range(tuning.steps):
        indices = [next(order) for _ in range(tuning.batch)]
        batch = [preferences[i] for i in indices]
        chosen, rejected = _both(model, tokenizer, batch, form)
        if tuning.objective == "dpo":
            loss = dpo(chosen.total - rejected.total, reference[indices], tuning.beta)
        else:
            likelihood = -chosen.total.sum() / chosen.tokens.sum()
            loss = likelihood + orpo(chosen.mean, rejected.mean, tuning.beta)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def write_delta(
    out: Path,
    base: Any,
    tokenizer: Any,
    pairs: Sequence[Preference],
    tuning: Tuning,
    init: int,
    **options: Any,
) -> None:
    """Tune the base on preferences, and write the directory of the adapter in float32.

    bfloat16 would lose a part of how far the factors move at small learning rates. ``options`` are
    those of ``tuned``.
    """
    model = tuned(base, tokenizer, pairs, tuning, init=init, **options)
    write(model, out, torch.float32)
    model.unload()


def _order(count: int, seed: int) -> Iterator[int]:
    """Yield indices without end: every epoch has each once."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(range(count), count)
