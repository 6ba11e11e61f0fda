"""Adapters made and applied by real PEFT on real transformers models, small enough for a test."""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

_IDS = torch.arange(24).reshape(2, 12) * 7 % 61


def tiny_llama(path: Path) -> LlamaForCausalLM:
    """Two layers of width 24 with grouped queries, random weights. Adapters name ``path`` as their base model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,  # activations of size one, so that a wrong delta shows
    )
    model = LlamaForCausalLM(config).eval()
    config.save_pretrained(path)  # PEFT looks there for a changed vocabulary
    model.name_or_path = str(path)
    return model


def tiny_gpt2() -> GPT2LMHeadModel:
    """Conv1D layers, which keep their weights as (in, out); c_proj of the attention is square."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()


def save_adapter(model: Any, path: Path, *, seed: int = 0, **config: Any) -> Path:
    """An adapter as PEFT saves it after training: every factor random, none zero. ``config`` goes to LoraConfig."""
    torch.manual_seed(seed)
    defaults = {"target_modules": ["q_proj", "v_proj", "down_proj"], "init_lora_weights": False}
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**{**defaults, **config}))
    adapted.save_pretrained(path)
    return path


@torch.no_grad()
def forward(model: Any, adapter: Path | None = None) -> Tensor:
    """Logits of the model, with an adapter that PEFT loads if one is given."""
    model = copy.deepcopy(model)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    return forward_adapted(model)


@torch.no_grad()
def forward_adapted(model: Any) -> Tensor:
    """Logits of the model as it is, with the adapters that are active in it."""
    return model.eval()(_IDS).logits


@torch.no_grad()
def forward_with_deltas(model: Any, deltas: dict[str, Tensor]) -> Tensor:
    """Logits of the model with dense deltas (out, in) added to the weights of its modules, without PEFT."""
    model = copy.deepcopy(model)
    for name, delta in deltas.items():
        weight = model.get_submodule(name).weight
        weight += delta.to(weight.dtype)
    return forward(model)
