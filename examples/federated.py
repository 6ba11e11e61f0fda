"""Federated averaging of adapters: each client trains on its own texts, the server merges what they send.

    pip install "gam-merge[peft]" transformers
    python examples/federated.py HuggingFaceTB/SmolLM2-135M-Instruct client-1.txt client-2.txt client-3.txt --rounds 5

The mean of the deltas is exact before the cut to the rank of the adapter. Averaging A and B by themselves, as federated
LoRA often does, would multiply one client's A by another's B. Here all clients run in one process, in turn.
"""

import argparse
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

import gam_merge as gm

WIDTH, BATCH, STEPS = (
    64,
    4,
    10,
)  # tokens of a sequence, sequences of a step, steps of a client in a round


def train(model: PeftModel, tokens: torch.Tensor) -> float:
    """A few steps on one client: the loss of the last."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(STEPS):
        batch = tokens[torch.arange(step * BATCH, (step + 1) * BATCH) % len(tokens)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base")
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    ids = [
        tokenizer(path.read_text("utf-8"), return_tensors="pt").input_ids[0]
        for path in arguments.texts
    ]
    clients = [x[: len(x) // WIDTH * WIDTH].reshape(-1, WIDTH) for x in ids]
    config = LoraConfig(
        r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"]
    )  # alpha = r, as every merge has it
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(arguments.base), config)
    state = get_peft_model_state_dict(model)
    for number in range(1, arguments.rounds + 1):
        sent, losses = [], []
        for tokens in clients:
            set_peft_model_state_dict(model, state)
            losses.append(train(model, tokens))
            sent.append(
                {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
            )
        merged = gm.merge_state_dicts(
            sent, config, method="mean", weights=[len(tokens) for tokens in clients], rank=8
        )
        state = gm.state_dict(merged.adapter)
        print(
            f"round {number}: losses {', '.join(f'{x:.3f}' for x in losses)}; kept {merged.report.energy_kept:.1%}"
        )
    print(f"wrote {merged.save('federated')}")


if __name__ == "__main__":
    main()
