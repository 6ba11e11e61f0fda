"""GGUF adapters: what llama.cpp and the programs around it load.

One ``NAME.gguf`` without a config. Keys are the names of llama.cpp's own tensors and a role. In
some architectures rows of q and k are in another order than in transformers' models; a merge of
GGUF adapters does not need to know.

blk.0.attn_q.weight.lora_a    A (r, in); of token_embd (vocabulary, r)
blk.0.attn_q.weight.lora_b    B (out, r); of token_embd (dim, r)
adapter.lora.alpha            in the metadata: delta = alpha / r * B A; 1 * B A without it

Written from the reader, ``src/llama-adapter.cpp``, and ``convert_lora_to_gguf.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite

from gam_merge._common.errors import GamMergeError, collecting
from gam_merge._common.tensors import LazyTensor, dtype_name, transposed
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._read.format import Contents, Format, check_holds, check_one_rank
from gam_merge._read.gguf_file import ARCHITECTURE, TYPE, VERSION_KEY, WRITTEN, GgufWriter, library
from gam_merge._read.hub_id import is_repo
from gam_merge._read.layout import EmbeddingLayout, Layout
from gam_merge._read.pairs import check_alpha_not_given, with_given_alpha

_ALPHA, _KIND = "adapter.lora.alpha", "adapter.type"
_ACTIVATED = "adapter.alora.invocation_tokens"
_BASES, _BASE = "general.base_model.count", "general.base_model.0."
_HUB = "https://huggingface.co/"
_ENDS = {".weight.lora_a": "lora_a", ".weight.lora_b": "lora_b"}
_NORM = "_norm.weight"  # llama.cpp accepts whole norms, and ignores them
_EMBEDDING = "token_embd"


class Gguf(Format):
    """The format of llama.cpp."""

    name = "gguf"
    weights_names = ("adapter.gguf",)
    file_suffix = ".gguf"
    container = GgufWriter

    def recognizes(self, contents: Contents) -> bool:
        return VERSION_KEY in contents.metadata

    def parse(self, contents: Contents, problems: list[str] | None = None) -> Adapter:
        where, metadata = contents.where, contents.metadata
        alpha = _alpha(where, metadata)
        pairs: dict[str, dict[str, LazyTensor]] = {}
        norms: list[str] = []
        for key, tensor in contents.tensors.items():
            if key.endswith(_NORM):
                norms.append(key)
                continue
            with collecting(problems):
                name, part = _split(where, key)
                pairs.setdefault(name, {})[part] = tensor
        modules: dict[str, LoraModule] = {}
        for name, pair in sorted(pairs.items()):
            with collecting(problems):
                modules[name] = _module(where, name, pair, alpha)
        if not modules:
            with collecting(problems):
                raise GamMergeError(f"{where}: holds no LoRA factors")
        with collecting(problems):
            if alpha:
                check_alpha_not_given(contents, _ALPHA)
            else:
                modules = with_given_alpha(contents, {}, modules)
        base_model = _base_model(metadata)
        return Adapter(
            contents.source,
            modules,
            base_model or contents.base_model,
            config=dict(metadata),
            notes=_notes(norms),
            given=contents.given(base_model),
            format=self.name,
            alpha=alpha or contents.alpha,
        )

    def check_together(self, adapters: Sequence[Adapter]) -> None:
        first = adapters[0]
        known = first.config[ARCHITECTURE]
        for other in adapters[1:]:
            if other.config[ARCHITECTURE] != known:
                raise GamMergeError(
                    f"{first.source} is for the architecture {known} and {other.source} for "
                    f"{other.config[ARCHITECTURE]}; merge adapters of one base model"
                )

    def describe(self, adapter: Adapter, sources: Sequence[Adapter] = ()) -> Adapter:
        library()  # an error before anything is written
        check_holds(self, adapter, (Layout, EmbeddingLayout))
        check_one_rank("llama.cpp", adapter)
        _check_dtype(adapter)
        config = {
            ARCHITECTURE: (sources or [adapter])[0].config[ARCHITECTURE],
            TYPE: "adapter",
            _KIND: "lora",
            _ALPHA: str(float(adapter.rank)),
        }
        if adapter.base_model is not None:
            config |= {_BASES: "1", f"{_BASE}name": adapter.base_model}
            if is_repo(adapter.base_model):
                config[f"{_BASE}repo_url"] = _HUB + adapter.base_model
        return replace(adapter, format=self.name, config=config)

    def module_tensors(self, module: LoraModule) -> dict[str, LazyTensor]:
        is_embedding = isinstance(module.layout, EmbeddingLayout)
        return {
            f"{module.name}.weight.lora_a": transposed(module.a) if is_embedding else module.a,
            f"{module.name}.weight.lora_b": module.b,
        }

    def metadata(self, adapter: Adapter, title: str) -> Mapping[str, str]:
        return adapter.config


def _alpha(where: str, metadata: Mapping[str, str]) -> float | None:
    """Return the alpha of a file, None if it has none. Raises GamMergeError if it is not a LoRA."""
    if metadata.get(_KIND) != "lora":
        raise GamMergeError(f"{where}: {_KIND} must be 'lora', got {metadata.get(_KIND)!r}")
    if not metadata.get(ARCHITECTURE):
        raise GamMergeError(f"{where}: has no {ARCHITECTURE}, without which nothing loads it")
    if _ACTIVATED in metadata:
        raise GamMergeError(
            f"{where}: is an activated LoRA, which applies to some tokens only ({_ACTIVATED}); "
            "leave this adapter out"
        )
    alpha = float(metadata.get(_ALPHA, 0.0))
    if not isfinite(alpha):
        raise GamMergeError(f"{where}: {_ALPHA} must be a finite number, got {alpha}")
    return alpha or None


def _base_model(metadata: Mapping[str, str]) -> str | None:
    """Return the base model that a file names: a repository of the Hub before a mere name."""
    url = metadata.get(f"{_BASE}repo_url", "")
    return url.removeprefix(_HUB) or metadata.get(f"{_BASE}name")


def _split(where: str, key: str) -> tuple[str, str]:
    """Return the module and the part of a key."""
    for end, part in _ENDS.items():
        module = key.removesuffix(end)
        if module not in ("", key):
            return module, part
    raise GamMergeError(
        f"{where}: tensor {key} is not part of a LoRA that can be merged; leave this adapter out"
    )


def _module(
    where: str, name: str, pair: Mapping[str, LazyTensor], alpha: float | None
) -> LoraModule:
    a, b = pair.get("lora_a"), pair.get("lora_b")
    if a is None or b is None:
        part = "lora_a" if a is None else "lora_b"
        raise GamMergeError(f"{where}: module {name} has no {part}; the file is incomplete")
    if len(a.shape) == 3:
        raise GamMergeError(
            f"{where}: module {name} has a factor per expert, which is not supported in the format "
            "gguf; leave this adapter out"
        )
    layout = EmbeddingLayout() if name == _EMBEDDING else Layout()
    if name == _EMBEDDING and len(a.shape) == 2:
        a = transposed(a)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in a.shape + b.shape:
        raise GamMergeError(
            f"{where}: module {name} has A {a.shape} and B {b.shape}, not (r, in) and (out, r)"
        )
    scale = 1.0 if alpha is None else alpha / a.shape[0]
    return LoraModule(name, a, b, scale, layout)


def _notes(norms: Sequence[str]) -> tuple[str, ...]:
    if not norms:
        return ()
    return (f"leaves out {len(norms)} norms, which llama.cpp ignores ({norms[0]})",)


def _check_dtype(adapter: Adapter) -> None:
    for module in adapter.modules.values():
        for factor in (module.a, module.b):
            if factor.dtype not in WRITTEN:
                raise GamMergeError(
                    f"the format gguf does not hold {dtype_name(factor.dtype)} ({module.name}); "
                    "choose --dtype float32, float16 or bfloat16 (dtype=)"
                )
