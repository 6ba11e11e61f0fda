"""Federated averaging of adapters: clients train on their own texts, the server merges the results.

    pip install "gam-merge[peft]" transformers
    python examples/federated.py HuggingFaceTB/SmolLM2-135M-Instruct client-{1,2,3}.txt --rounds 5

The mean of the deltas is exact until it is cut to the rank of the adapter. Averaging A and B
separately, as federated LoRA often does, would multiply one client's A by another's B. Here all
clients run in one process, one after another.
"""

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft import get_peft_model_state_dict as get_state
from peft import set_peft_model_state_dict as set_state
from transformers import AutoModelForCausalLM, AutoTokenizer

import gam_merge as gm

WIDTH, BATCH, STEPS = 64, 4, 10  # tokens of a sequence, sequences per step, steps per round


def train(model: PeftModel, tokens: torch.Tensor) -> float:
    """Train a few steps on one client, and return the loss of the last."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(STEPS):
        batch = tokens[torch.arange(step * BATCH, (step + 1) * BATCH) % len(tokens)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    clients: list[torch.Tensor] = []
    for path in arguments.texts:
        ids = tokenizer(path.read_text("utf-8"), return_tensors="pt").input_ids[0]
        clients.append(ids[: len(ids) // WIDTH * WIDTH].reshape(-1, WIDTH))
    config = LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(arguments.base), config)
    state = get_state(model)
    for number in range(1, arguments.rounds + 1):
        sent, losses = [], []
        for tokens in clients:
            set_state(model, state)
            losses.append(f"{train(model, tokens):.3f}")
            sent.append({key: value.clone() for key, value in get_state(model).items()})
        sizes = [len(tokens) for tokens in clients]
        merged = gm.merge_state_dicts(sent, config, method="mean", weights=sizes, rank=8)
        state = gm.state_dict(merged.adapter)
        kept = merged.report.energy_kept
        print(f"round {number}: losses {', '.join(losses)}; kept {kept:.1%}")
    print(f"wrote {merged.save('federated')}")


if __name__ == "__main__":
    main()
