"""A whole model on disk, known from the headers of its safetensors files; its config, and the files beside them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from gam_merge._errors import GamMergeError
from gam_merge._files import read_json
from gam_merge._safetensors import read_header
from gam_merge._tensors import FileTensor

# Conv1D of transformers keeps its weight as (in, out). These models are made of it, in layers of these names.
_CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
_CONV1D_NAMES = {"c_attn", "c_proj", "c_fc", "q_attn"}
_INDEX = ".safetensors.index.json"
# What is no part of a copy: weights in any format, and what describes the model as it was.
_LEFT_BEHIND = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".md"}


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a model, by file and key; ``config`` is its config.json."""

    path: Path
    shards: Mapping[str, Mapping[str, FileTensor]]
    config: Mapping[str, Any]
    index: str | None = None  # the name of the file that says which tensor is where, if there are several

    @cached_property
    def tensors(self) -> dict[str, FileTensor]:
        return {key: tensor for shard in self.shards.values() for key, tensor in shard.items()}

    def companions(self) -> list[Path]:
        """The files beside the weights that a copy of the model needs: config, tokenizer, code, licence."""
        files = sorted(path for path in self.path.iterdir() if path.is_file() and not path.name.startswith("."))
        return [p for p in files if p.suffix not in _LEFT_BEHIND and not p.name.endswith(".index.json")]


def open_checkpoint(source: str | PathLike[str], *, only: str | None = None) -> Checkpoint:
    """Open a directory that ``save_pretrained`` wrote, or ``only`` one file in it.

    Raises GamMergeError if it holds no whole set of safetensors."""
    path = Path(source)
    if not path.is_dir():
        raise GamMergeError(f"{path}: no such directory; name the one that holds the model's safetensors files")
    indices, files = sorted(path.glob(f"*{_INDEX}")), sorted(path.glob("*.safetensors"))
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if only is not None:
        return Checkpoint(path, {only: _tensors(path / only)}, config)
    if len(indices) == 1:
        return Checkpoint(path, _indexed(path, indices[0]), config, indices[0].name)
    if len(files) != 1 or indices:
        found = ", ".join(file.name for file in indices or files) or "none"
        raise GamMergeError(f"{path}: needs one safetensors file, or several and one index, and has: {found}")
    return Checkpoint(path, {files[0].name: _tensors(files[0])}, config)


def _indexed(path: Path, index: Path) -> dict[str, Mapping[str, FileTensor]]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(n, str) and n == Path(n).name for n in places.values()):
        raise GamMergeError(f"{index}: does not say which tensor is in which file of this directory")
    shards: dict[str, Mapping[str, FileTensor]] = {}
    for name in sorted(set(places.values())):
        shards[name] = _tensors(path / name)
        for key in (key for key, place in places.items() if place == name and key not in shards[name]):
            raise GamMergeError(f"{path / name}: lacks tensor {key}, which {index.name} looks for there")
    return shards


def _tensors(file: Path) -> Mapping[str, FileTensor]:
    return read_header(file, any_dtype=True)[0]


def is_conv1d(checkpoint: Checkpoint, module: str) -> bool:
    """Whether the weight of a module is kept as (in, out), so far as the config tells."""
    return checkpoint.config.get("model_type") in _CONV1D_MODELS and module.rpartition(".")[2] in _CONV1D_NAMES


def common_prefix(checkpoint: Checkpoint, parameters: Iterable[Sequence[str]]) -> tuple[int, str]:
    """How the names of a model in memory become keys of its file: how many leading parts to drop, what to put before.

    parameters: for each, the names that it may have. (0, "") for most; a headless checkpoint lacks the "model." of a
    causal model, say. The change that finds all of them holds, the one that drops least and no number of a layer.
    Raises GamMergeError if there is none, or more than one.
    """
    wanted, keys = sorted(map(tuple, parameters)), checkpoint.tensors.keys()
    parts = wanted[0][0].split(".")
    layer = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts) - 1)
    for drop in range(layer):
        tails = [rename(name, drop, "") for name in wanted[0]]
        starts = sorted({key.removesuffix(tail) for tail in tails for key in keys if f".{key}".endswith(f".{tail}")})
        fitting = [start for start in starts if all(any(rename(n, drop, start) in keys for n in ns) for ns in wanted)]
        if len(fitting) > 1:
            places = ", ".join(start + tails[0] for start in fitting)
            raise GamMergeError(f"{checkpoint.path}: {wanted[0][0]} may be any of {places}")
        if fitting:
            return drop, fitting[0]
    missing = next((names[0] for names in wanted if not keys & set(names)), wanted[0][0])
    raise GamMergeError(f"{checkpoint.path}: has no tensor {missing}; the adapter is of another base model")


def rename(parameter: str, drop: int, start: str) -> str:
    """The key of a parameter after the change that ``common_prefix`` found."""
    return start + ".".join(parameter.split(".")[drop:])
