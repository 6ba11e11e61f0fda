"""Every kind of adapter that PEFT can write, on tiny real models, and what it does to the weights, by PEFT alone."""

import atexit
import copy
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_IDS = torch.arange(20).reshape(2, 10) * 7 % 37
_TEXT = {"vocab_size": 37, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}


class ConvNet(nn.Module):
    """One convolution of each kind, with an input that shows all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(4, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, (3, 1), groups=4)
        self.pointwise = nn.Conv2d(12, 6, 1)
        self.line = nn.Conv1d(6, 8, 3)
        self.space = nn.Conv3d(2, 6, (1, 2, 2))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise(torch.tanh(self.grouped(torch.tanh(self.plain(x)))))  # (N, 6, 4, 6)
        x = self.line(torch.tanh(x).flatten(2))  # (N, 8, 22)
        x = self.space(torch.tanh(x).reshape(-1, 2, 4, 2, 11)).flatten(2).mT  # (N, 40, 6)
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def _build(kind: str) -> nn.Module:
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    match kind:
        case "llama" | "tied":
            config = tf.LlamaConfig(**_TEXT, **_HEADS, tie_word_embeddings=kind == "tied", **tokens)
            return tf.LlamaForCausalLM(config)
        case "qwen2":
            return tf.Qwen2ForCausalLM(tf.Qwen2Config(**_TEXT, **_HEADS, **tokens))
        case "gpt2":
            config = tf.GPT2Config(
                vocab_size=37, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3, **tokens
            )
            return tf.GPT2LMHeadModel(config)
        case "mixtral":
            return tf.MixtralForCausalLM(
                tf.MixtralConfig(
                    **_TEXT, **_HEADS, num_local_experts=3, **tokens, experts_implementation="eager"
                )
            )
        case "qwen3_moe":
            sizes = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
            config = tf.Qwen3MoeConfig(
                **_TEXT, **_HEADS, **sizes, **tokens, head_dim=4, experts_implementation="eager"
            )
            return tf.Qwen3MoeForCausalLM(config)
        case "t5":
            config = tf.T5Config(
                vocab_size=37, d_model=16, d_ff=24, d_kv=4, num_layers=1, num_heads=4, **tokens
            )
            return tf.T5ForConditionalGeneration(config)
        case "vit":
            sizes = {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            }
            return tf.ViTForImageClassification(tf.ViTConfig(image_size=8, patch_size=4, **sizes))
        case "roberta":
            sizes = {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            }
            config = tf.RobertaConfig(vocab_size=37, **sizes, **tokens)
            return tf.RobertaForSequenceClassification(config)
    return ConvNet()


@cache
def model(kind: str) -> nn.Module:
    """Random weights, biases and norms included: float64, of float32 values. Shared: work on a copy."""
    torch.manual_seed(0)
    built = _build(kind).float().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return built.double()


@torch.no_grad()
def forward(built: nn.Module) -> Tensor:
    """What the model says to a fixed input."""
    inner = built.get_base_model() if isinstance(built, PeftModel) else built
    if isinstance(inner, ConvNet):
        return built(
            torch.linspace(-2, 2, 2 * 4 * 6 * 6, dtype=torch.float64).sin().reshape(2, 4, 6, 6)
        )
    if isinstance(inner, tf.ViTForImageClassification):
        pixels = torch.linspace(-2, 2, 2 * 3 * 8 * 8, dtype=torch.float64).sin().reshape(2, 3, 8, 8)
        return built(pixel_values=pixels).logits
    more = (
        {"decoder_input_ids": _IDS[:, :5]}
        if isinstance(inner, tf.T5ForConditionalGeneration)
        else {}
    )
    return built(input_ids=_IDS, **more).logits


_ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_CONVS = ["plain", "grouped", "pointwise", "line", "space"]
_EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

# name -> kind of model, what LoraConfig is given
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", {"target_modules": _ALL_LINEAR}),
    "all-linear": ("llama", {"target_modules": "all-linear"}),
    "target_regex": ("llama", {"target_modules": r".*layers\.1\..*(q|down)_proj"}),
    "layers_to_transform": (
        "llama",
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    ),
    "exclude_modules": (
        "llama",
        {"target_modules": ["q_proj"], "exclude_modules": ["model.layers.0.self_attn.q_proj"]},
    ),
    "rslora": ("llama", {"target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
    "rank_pattern": (
        "llama",
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"1.self.attn.q_proj": 2}},
    ),
    "alpha_pattern": (
        "llama",
        {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {r"layers\.0.*": 3}},
    ),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "lm_head": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
    "tied_embedding": ("tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied_lm_head": ("tied", {"target_modules": ["lm_head", "v_proj"]}),
    "tied_both": (
        "tied",
        {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    ),
    "lora_bias": ("qwen2", {"target_modules": ["q_proj", "k_proj"], "lora_bias": True}),
    "lora_bias_rslora": (
        "qwen2",
        {"target_modules": ["q_proj"], "lora_bias": True, "use_rslora": True},
    ),
    "bias_lora_only": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "bias_all": ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}),
    "trainable_tokens": (
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 7, 14]},
    ),
    "trainable_tokens_tied": (
        "tied",
        {
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [14, 3]},
            "ensure_weight_tying": True,
        },
    ),
    "modules_to_save": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    ),
    "modules_to_save_tied": (
        "tied",
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    ),
    "classifier": ("roberta", {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
    "classifier_bias_all": (
        "roberta",
        {"target_modules": ["query"], "task_type": "SEQ_CLS", "bias": "all"},
    ),
    "conv1d_of_gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "gpt2_embeddings": ("gpt2", {"target_modules": ["wte", "wpe", "c_attn"]}),
    "experts": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": _EXPERTS}),
    "experts_alone": (
        "mixtral",
        {"target_modules": [], "target_parameters": _EXPERTS[:1], "use_rslora": True},
    ),
    "experts_alphas": (
        "mixtral",
        {
            "target_modules": [],
            "target_parameters": _EXPERTS,
            "alpha_pattern": {r"model.layers\.0\..*": 3},
        },
    ),
    "experts_ranks": (
        "mixtral",
        {
            "target_modules": [],
            "target_parameters": _EXPERTS,
            "rank_pattern": {r"model.layers\.1\..*": 2},
        },
    ),
    "gate": ("mixtral", {"target_modules": [], "target_parameters": ["mlp.gate.weight"]}),
    "router": (
        "mixtral",
        {"target_modules": ["v_proj"], "target_parameters": ["mlp.gate.weight", *_EXPERTS]},
    ),
    "t5": ("t5", {"target_modules": ["q", "v", "wo", "shared"]}),
    "vit": (
        "vit",
        {"target_modules": ["query", "value", "projection"], "modules_to_save": ["classifier"]},
    ),
    "conv": ("conv", {"target_modules": ["plain", "pointwise", "line", "space"]}),
    "conv_grouped": ("conv", {"target_modules": _CONVS}),
    "conv_bias": ("conv", {"target_modules": ["plain", "line"], "lora_bias": True}),
    "multihead_attention": ("conv", {"target_modules": ["attention", "head"]}),
    "dora": ("llama", {"target_modules": _ALL_LINEAR, "use_dora": True}),
    "dora_rslora": ("llama", {"target_modules": ["q_proj"], "use_dora": True, "use_rslora": True}),
    "dora_embeddings": (
        "llama",
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "use_dora": True},
    ),
    "dora_conv1d_of_gpt2": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "use_dora": True},
    ),
    "dora_conv": (
        "conv",
        {"target_modules": ["plain", "pointwise", "line", "space"], "use_dora": True},
    ),
    "dora_modules_to_save": (
        "llama",
        {"target_modules": ["v_proj"], "use_dora": True, "modules_to_save": ["norm"]},
    ),
    "init_gaussian": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"}),
    "init_orthogonal": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"}),
    "init_mica": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "mica"}),
}


@contextmanager
def quiet() -> Any:
    """PEFT warns of much that is meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save(path: Path, kind: str, seed: int, **config: Any) -> Path:
    """A LoRA adapter as PEFT saves it after training."""
    return save_any(path, kind, seed, LoraConfig(**{"r": 4, "lora_alpha": 6, **config}))


def save_any(path: Path, kind: str, seed: int, config: PeftConfig) -> Path:
    """The same of any kind of adapter: all that is trainable is moved from where it started."""
    built = copy.deepcopy(model(kind)).float()
    torch.manual_seed(seed)  # only now: the model may have been drawn first, or have been there
    with quiet():
        adapted = get_peft_model(built, config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += 0.2 * torch.randn_like(parameter)
        adapted.save_pretrained(path)
    return path


@cache
def base(kind: str) -> Path:
    """The weights of the model in a file, as float32."""
    path = Path(tempfile.mkdtemp(prefix="gam-merge-base-")) / "model.safetensors"
    atexit.register(shutil.rmtree, path.parent)
    save_file(
        {name: value.float().clone() for name, value in model(kind).state_dict().items()}, path
    )
    return path


def load(kind: str, path: Path) -> PeftModel:
    """The model with the adapter, as PEFT loads it."""
    with quiet():
        return PeftModel.from_pretrained(copy.deepcopy(model(kind)).float(), path).double().eval()


def dense_mean(kind: str, paths: Sequence[Path], weights: Sequence[float]) -> nn.Module:
    """The model whose every parameter is the weighted mean of what PEFT fuses each adapter into."""
    total: dict[str, Tensor] = {}
    for path, weight in zip(paths, weights, strict=True):
        for name, value in fused(kind, path).state_dict().items():
            total[name] = total.get(name, 0) + weight * value
    plain = copy.deepcopy(model(kind))
    _untie(plain)
    if isinstance(plain, ConvNet):
        plain.grouped = nn.Conv2d(8, 12, (3, 1)).double()
    plain.load_state_dict(total)
    return plain


def fused(kind: str, path: Path) -> nn.Module:
    """The model with an adapter in its weights. PEFT refuses grouped convolutions: these we fuse by the definition."""
    adapted = load(kind, path)
    _untie(adapted)
    inner = adapted.get_base_model()
    if isinstance(inner, ConvNet):
        inner.grouped = _fused_grouped(inner.grouped, path)
    with quiet():
        return adapted.merge_and_unload()


def _fused_grouped(layer: Any, path: Path) -> nn.Conv2d:
    """A dense convolution: the groups of the base on the block diagonal, and the delta, whose A sees all channels."""
    base = getattr(layer, "base_layer", layer)
    out = nn.Conv2d(8, 12, (3, 1)).double()
    with torch.no_grad():
        out.bias.copy_(base.bias)
        out.weight.zero_()
        tensors = load_file(path / "adapter_model.safetensors")
        for g in range(4):
            rows, columns = slice(3 * g, 3 * g + 3), slice(2 * g, 2 * g + 2)
            out.weight[rows, columns] += base.weight[rows]
            if base is not layer:
                a, b = (tensors[f"base_model.model.grouped.lora_{x}.weight"].double() for x in "AB")
                part = slice(g * b.shape[1], (g + 1) * b.shape[1])
                scale = layer.scaling["default"]
                out.weight[rows] += scale * torch.einsum("or,rikl->oikl", b[rows, :, 0, 0], a[part])
    return out


def _untie(plain: nn.Module) -> None:
    """An adapter on one end of tied weights leaves the other alone, which weights in common could not show."""
    for module in plain.modules():
        if type(module) in (nn.Linear, nn.Embedding):
            module.weight = nn.Parameter(module.weight.detach().clone())
