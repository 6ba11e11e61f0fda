"""llama.cpp's names of the modules of language models, and its order of their rows.

For its rotary embedding llama.cpp keeps the two halves of each head of q and k interleaved in the
architectures that it calls llama. A is the same, rows of B move: B (heads 2 d, r), seen as
(heads, 2, d, r), is stored as (heads, d, 2, r).

Written from ``conversion/`` of llama.cpp. The architectures are those that tests compare with
llama.cpp itself; others permute, split and fuse in ways of their own.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import DerivedTensor
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._read.diffusers import component_of
from gam_merge._read.gguf_file import ARCHITECTURE, library
from gam_merge._translate.base import BaseConfig
from gam_merge._translate.dialect import Dialect, Modules, no_name, renamed

_CONVERTER = "llama.cpp's convert_lora_to_gguf.py"
_ONCE = ("model.embed_tokens", "lm_head")
_IN_A_LAYER = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
_MOST_LAYERS = 1000


@dataclass(frozen=True)
class _Architecture:
    """What llama.cpp makes of a class of models.

    Attributes:
        name: as llama.cpp calls it.
        interleaved: whether the halves of the heads of q and k are.
        ties_head: whether head and embedding are one tensor where the config does not say it.
    """

    name: str
    interleaved: bool = False
    ties_head: bool = False


_ARCHITECTURES = {
    "LlamaForCausalLM": _Architecture("llama", interleaved=True),
    "MistralForCausalLM": _Architecture("llama", interleaved=True),
    "Qwen2ForCausalLM": _Architecture("qwen2"),
    "Qwen3ForCausalLM": _Architecture("qwen3"),
    "Gemma2ForCausalLM": _Architecture("gemma2", ties_head=True),
    "Gemma3ForCausalLM": _Architecture("gemma3", ties_head=True),
}


@dataclass(frozen=True)
class _Model:
    """A base model, as far as names and rows depend on it."""

    where: str
    architecture: _Architecture
    layers: int
    heads: Mapping[str, int]  # by the end of the name of a module whose rows are interleaved
    ties_head: bool

    @property
    def names(self) -> Mapping[str, str]:
        """llama.cpp's names of the modules by those of transformers."""
        names = _names(self.architecture.name, self.layers)
        if self.ties_head:
            return {name: stored for name, stored in names.items() if name not in _ONCE}
        return names


class GgufNames(Dialect):
    """llama.cpp's names of tensors, without ``.weight``."""

    name = "llama.cpp's format"
    format = "gguf"

    def __init__(self, base: BaseConfig | None = None) -> None:
        self._base = base

    def for_base(self, base: BaseConfig | None) -> "GgufNames":
        return GgufNames(base)

    def recognizes(self, names: Collection[str]) -> bool:
        return any(name.startswith("blk.") or name in ("token_embd", "output") for name in names)

    def is_default(self, names: Collection[str]) -> bool:
        return True

    def to_common(self, adapter: Adapter) -> dict[str, LoraModule]:
        model = self._model(adapter)
        stored = adapter.config.get(ARCHITECTURE)
        if stored != model.architecture.name:
            raise GamMergeError(
                f"{adapter.source}: is for the architecture {stored}, but its base model is "
                f"{model.architecture.name}; name the base model with --base (base_model=)"
            )
        names = {name: common for common, name in model.names.items()}
        common: dict[str, LoraModule] = {}
        for name, module in adapter.modules.items():
            if name not in names:
                raise GamMergeError(
                    f"{adapter.source}: module {name} ({self.format}) is not one of the base model "
                    f"{model.where}; name the right one with --base (base_model=)"
                )
            rows = _moved(adapter, module, model, _halved)
            common[names[name]] = renamed(rows, names[name])
        return common

    def from_common(self, modules: Modules, adapter: Adapter) -> dict[str, LoraModule]:
        for name in modules:
            if component_of(name):
                raise no_name(adapter, name, self.name, "llama.cpp runs language models")
        if adapter.transposed:
            raise GamMergeError(
                f"{adapter.source}: its layers keep their weights as (in, out), which the format "
                f"gguf does not know; {_CONVERTER} may convert it"
            )
        for name, module in modules.items():
            if module.magnitude is not None:
                raise GamMergeError(
                    f"{adapter.source}: module {name} is DoRA, which the format gguf cannot hold; "
                    "merge into PEFT's format with --flatten-dora (flatten_dora=True), then convert"
                )
        model = self._model(adapter)
        named: dict[str, LoraModule] = {}
        for name, module in modules.items():
            if name not in model.names:
                raise no_name(adapter, name, self.name, _remedy(name, model))
            stored = renamed(module, model.names[name])
            named[stored.name] = _moved(adapter, stored, model, _interleaved)
        return named

    def config(self, adapter: Adapter) -> dict[str, str]:
        return {ARCHITECTURE: self._model(adapter).architecture.name}

    def _model(self, adapter: Adapter) -> _Model:
        """Return the base model of an adapter. Raises GamMergeError if it is not a known one."""
        if self._base is None:
            raise GamMergeError(
                f"{adapter.source}: names and rows in {self.name} follow from the config of the "
                "base model, which the adapter does not name; name it with --base (base_model=), "
                "a directory or a Hub id"
            )
        return _model(self._base.name, self._base.fields)


def _model(where: str, config: Mapping[str, Any]) -> _Model:
    """Return what a config says about a model."""
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    architecture = _ARCHITECTURES.get(name) if isinstance(name, str) else None
    if architecture is None:
        raise GamMergeError(
            f"{where}: the format gguf is written and translated for the architectures "
            f"{', '.join(_ARCHITECTURES)}, got {name!r}; convert adapters of others with "
            f"{_CONVERTER}"
        )
    heads: dict[str, int] = {}
    if architecture.interleaved:
        queries = _count(where, config, "num_attention_heads")
        key = "num_key_value_heads"
        heads = {"attn_q": queries, "attn_k": queries}
        if config.get(key) is not None:
            heads["attn_k"] = _count(where, config, key)
    return _Model(
        where,
        architecture,
        _count(where, config, "num_hidden_layers"),
        heads,
        bool(config.get("tie_word_embeddings", architecture.ties_head)),
    )


def _count(where: str, config: Mapping[str, Any], field: str) -> int:
    count = config.get(field)
    if type(count) is not int or not 0 < count <= _MOST_LAYERS:
        raise GamMergeError(
            f"{where}: {field} must be an integer from 1 to {_MOST_LAYERS}, got {count!r}"
        )
    return count


@lru_cache(maxsize=8)
def _names(architecture: str, layers: int) -> Mapping[str, str]:
    """Return llama.cpp's names of the modules that all models here consist of."""
    gguf = library()
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], layers)
    common = list(_ONCE)
    for layer in range(layers):
        common += [f"model.layers.{layer}.{module}" for module in _IN_A_LAYER]
    return {name: table.get_name(name) for name in common if name in table}


def _remedy(name: str, model: _Model) -> str:
    if name in _ONCE and model.ties_head:
        return (
            "its base model has one tensor for embedding and head, of which llama.cpp cannot adapt "
            "one alone; leave adapters with it out"
        )
    return f"{_CONVERTER} may know it"


def _moved(adapter: Adapter, module: LoraModule, model: _Model, move: Any) -> LoraModule:
    """Return a module with the rows of B in another order if llama.cpp orders them in its own."""
    heads = model.heads.get(module.name.rpartition(".")[2])
    if heads is None:
        return module
    rows = module.b.shape[0]
    if rows % (2 * heads):
        raise GamMergeError(
            f"{adapter.source}: module {module.name} has {rows} rows, not {heads} heads of an even "
            "size, as its base model has by its config; name the right one with --base "
            "(base_model=)"
        )
    b = DerivedTensor(module.b.shape, module.b.dtype, partial(move, heads), (module.b,))
    return replace(module, b=b)


def _interleaved(heads: int, b: Tensor) -> Tensor:
    halves = b.unflatten(0, (heads, 2, -1))  # (heads 2 d, r) -> (heads, 2, d, r)
    return halves.transpose(1, 2).flatten(0, 2)  # (heads d 2, r)


def _halved(heads: int, b: Tensor) -> Tensor:
    pairs = b.unflatten(0, (heads, -1, 2))  # (heads d 2, r) -> (heads, d, 2, r)
    return pairs.transpose(1, 2).flatten(0, 2)  # (heads 2 d, r)
