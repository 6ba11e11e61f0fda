"""MLX-LM's adapters: adapter_config.json next to adapters.safetensors.

Keys are ``<module>.lora_a`` (in, r) and ``<module>.lora_b`` (r, out), both transposed against PEFT.
The config has one rank and one scale for the file: delta = scale * lora_b^T lora_a^T, without a
division by r. The reader (mlx_lm 0.32, ``tuner/utils.py``) adapts the modules that
``lora_parameters.keys`` names, in full or relative to a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from gam_merge._common.errors import GamMergeError, collecting
from gam_merge._common.names import layer_of
from gam_merge._common.tensors import LazyTensor, transposed
from gam_merge._common.types import is_number
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._read.format import Contents, Format, check_holds, check_one_rank
from gam_merge._read.layout import EmbeddingLayout, Layout

_KEEPS_DELTAS = ("lora", None)  # values of fine_tune_type


class Mlx(Format):
    """The format of MLX-LM."""

    name = "mlx"
    config_name = "adapter_config.json"
    weights_names = ("adapters.safetensors",)
    file_suffix = None

    def config_names(self, weights: PurePath) -> tuple[str, ...]:
        return (self.config_name,)

    def recognizes(self, contents: Contents) -> bool:
        return any(key.endswith((".lora_a", ".lora_b")) for key in contents.tensors)

    def parse(self, contents: Contents, problems: list[str] | None = None) -> Adapter:
        where = contents.where
        if contents.config is None:
            raise GamMergeError(
                f"{where}: no {self.config_name} next to it, where MLX-LM keeps rank and scale"
            )
        _check_type(where, contents.config)
        parameters = _lora_parameters(where, contents.config)
        pairs: dict[str, dict[str, LazyTensor]] = {}
        for key, tensor in contents.tensors.items():
            with collecting(problems):
                module, part = _split(where, key)
                pairs.setdefault(module, {})[part] = tensor
        modules: dict[str, LoraModule] = {}
        for name, pair in sorted(pairs.items()):
            with collecting(problems):
                modules[name] = _module(where, name, pair, parameters)
        if not modules:
            with collecting(problems):
                raise GamMergeError(f"{where}: holds no LoRA factors")
        model, given = contents.config.get("model"), dict[str, Any]()
        if not isinstance(model, str):
            model = contents.base_model
            given = {} if model is None else {"base_model": model}
        adapter = Adapter(contents.source, modules, model, given=given)
        return _described(adapter, contents.config)

    def describe(self, adapter: Adapter, sources: Sequence[Adapter] = ()) -> Adapter:
        check_holds(self, adapter, (Layout, EmbeddingLayout))
        check_one_rank("MLX-LM", adapter)
        config = {
            "model": adapter.base_model,
            "fine_tune_type": "lora",
            "num_layers": len(set(map(layer_of, adapter.modules))),
            "lora_parameters": {
                "rank": adapter.rank,
                "scale": 1.0,
                "dropout": 0.0,
                "keys": sorted(adapter.modules),
            },
        }
        return _described(adapter, config)

    def module_tensors(self, module: LoraModule) -> dict[str, LazyTensor]:
        return {
            f"{module.name}.lora_a": transposed(module.a),
            f"{module.name}.lora_b": transposed(module.b),
        }


def _described(adapter: Adapter, config: Mapping[str, Any]) -> Adapter:
    return replace(adapter, format=Mlx.name, config=dict(config))


def _check_type(where: str, config: Mapping[str, Any]) -> None:
    kind = config.get("fine_tune_type")
    if kind not in _KEEPS_DELTAS:
        raise GamMergeError(
            f"{where}: fine_tune_type is {kind!r}, and only 'lora' can be merged in MLX-LM's format"
        )


def _lora_parameters(where: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return rank and scale, after they were checked."""
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, Mapping):
        raise GamMergeError(f"{where}: lora_parameters must be an object, got {parameters!r}")
    for name in ("rank", "scale"):
        value = parameters.get(name)
        if not is_number(value):
            raise GamMergeError(f"{where}: lora_parameters.{name} must be a number, got {value!r}")
    return parameters


def _split(where: str, key: str) -> tuple[str, str]:
    """Return the module and the part of a key."""
    module, _, part = key.rpartition(".")
    if part == "m":
        raise GamMergeError(f"{where}: {module} is DoRA, which is supported only in PEFT's format")
    if part not in ("lora_a", "lora_b") or not module:
        raise GamMergeError(
            f"{where}: tensor {key} is not part of a LoRA that can be merged; leave this adapter "
            "out"
        )
    return module, part


def _module(
    where: str, name: str, pair: Mapping[str, LazyTensor], parameters: Mapping[str, Any]
) -> LoraModule:
    a, b = pair.get("lora_a"), pair.get("lora_b")
    if a is None or b is None:
        part = "lora_a" if a is None else "lora_b"
        raise GamMergeError(f"{where}: module {name} has no {part}; the file is incomplete")
    if len(a.shape) == 3:
        raise GamMergeError(
            f"{where}: module {name} has a factor per expert, which is not supported in "
            "MLX-LM's format"
        )
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0] or 0 in a.shape + b.shape:
        raise GamMergeError(
            f"{where}: module {name} has lora_a {a.shape} and lora_b {b.shape}, not (in, r) and "
            "(r, out)"
        )
    rank = parameters["rank"]
    if a.shape[1] != rank:
        raise GamMergeError(
            f"{where}: module {name} has rank {a.shape[1]} by its tensors and {rank} by its config"
        )
    return LoraModule(name, transposed(a), transposed(b), float(parameters["scale"]))
