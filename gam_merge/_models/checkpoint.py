"""A whole model, known from the headers of its safetensors files; its config, and on disk the files beside them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import is_there, read_json
from gam_merge._common.tensors import FileTensor
from gam_merge._read.hub_id import HubId
from gam_merge._read.safetensors import read_header

# Conv1D of transformers keeps its weight as (in, out). These models are made of it, in layers of these names.
_CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
_CONV1D_NAMES = {"c_attn", "c_proj", "c_fc", "q_attn"}
INDEX = ".safetensors.index.json"  # how the name ends of the file that says which tensor is in which other
# What is no part of a copy: weights in any format, and what describes the model as it was.
_LEFT_BEHIND = {
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".md",
}


@dataclass(frozen=True)
class Model:
    """The tensors of a model, by key; ``place`` is where it was found, ``config`` its config.json."""

    place: Path | HubId
    tensors: Mapping[str, FileTensor]
    config: Mapping[str, Any]

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of how it was read."""
        return ()


@dataclass(frozen=True)
class Checkpoint(Model):
    """A model in the directory ``path``: its tensors by file as well."""

    path: Path
    shards: Mapping[str, Mapping[str, FileTensor]]
    index: str | None = (
        None  # the name of the file that says which tensor is where, if there are several
    )

    def companions(self) -> list[Path]:
        """The files beside the weights that a copy of the model needs: config, tokenizer, code, licence."""
        files = sorted(
            path for path in self.path.iterdir() if path.is_file() and not path.name.startswith(".")
        )
        return [
            p for p in files if p.suffix not in _LEFT_BEHIND and not p.name.endswith(".index.json")
        ]


def open_checkpoint(source: str | PathLike[str], *, only: str | None = None) -> Checkpoint:
    """Open a directory that ``save_pretrained`` wrote, or ``only`` one file in it.

    Raises GamMergeError if it holds no whole set of safetensors."""
    path = Path(source)
    if not is_there(path) or not path.is_dir():
        raise GamMergeError(
            f"{path}: no such directory; name the one that holds the model's safetensors files"
        )
    indices, files = sorted(path.glob(f"*{INDEX}")), sorted(path.glob("*.safetensors"))
    config = read_config(path / "config.json") if (path / "config.json").is_file() else {}
    if only is not None:
        return _checkpoint(path / only, path, {only: read_shard(path / only)}, config)
    if len(indices) == 1:
        return _checkpoint(path, path, _indexed(path, indices[0]), config, indices[0].name)
    if len(files) != 1 or indices:
        found = ", ".join(file.name for file in indices or files) or "none"
        raise GamMergeError(
            f"{path}: needs one safetensors file, or several and one index, and has: {found}"
        )
    return _checkpoint(path, path, {files[0].name: read_shard(files[0])}, config)


def _checkpoint(
    place: Path,
    path: Path,
    shards: Mapping[str, Mapping[str, FileTensor]],
    config: Mapping[str, Any],
    index: str | None = None,
) -> Checkpoint:
    tensors = {key: tensor for shard in shards.values() for key, tensor in shard.items()}
    return Checkpoint(place, tensors, config, path, shards, index)


def _indexed(path: Path, index: Path) -> dict[str, Mapping[str, FileTensor]]:
    places = read_index(index)
    return {name: read_shard(path / name, places) for name in sorted(set(places.values()))}


def read_config(file: Path) -> dict[str, Any]:
    """The config.json of a model. Raises GamMergeError, also for what we look at and is not what it always is."""
    config = read_json(file)
    if not isinstance(config.get("model_type"), str | None):
        raise GamMergeError(f"{file}: model_type is no text")
    if not isinstance(config.get("architectures"), list | None):
        raise GamMergeError(f"{file}: architectures is no list")
    return config


def read_index(index: Path) -> dict[str, str]:
    """Which tensor is in which file beside the index. Raises GamMergeError."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(map(_is_shard, places.values())):
        raise GamMergeError(
            f"{index}: does not say which tensor is in which safetensors file of this directory"
        )
    return places


def _is_shard(name: Any) -> bool:
    """Whether it names a file that a copy of the model may have: in its directory, in no companion's place."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and name == Path(name).name
        and name.endswith(".safetensors")
    )


def read_shard(file: Path, places: Mapping[str, str] = {}) -> Mapping[str, FileTensor]:
    """The tensors of a file. Raises GamMergeError if it lacks one that ``places`` has there."""
    tensors = read_header(file, any_dtype=True)[0]
    for key in (key for key, place in places.items() if place == file.name and key not in tensors):
        raise GamMergeError(
            f"{file}: lacks tensor {key}, which the index beside it looks for there"
        )
    return tensors


def is_conv1d(model: Model, module: str) -> bool:
    """Whether the weight of a module is kept as (in, out), so far as the config tells."""
    return (
        model.config.get("model_type") in _CONV1D_MODELS
        and module.rpartition(".")[2] in _CONV1D_NAMES
    )


def common_prefix(model: Model, parameters: Iterable[Sequence[str]]) -> tuple[int, str]:
    """How the names of a model in memory become keys of its file: how many leading parts to drop, what to put before.

    parameters: for each, the names that it may have. (0, "") for most; a headless checkpoint lacks the "model." of a
    causal model, say. The change that finds all of them holds, the one that drops least and no number of a layer.
    Raises GamMergeError if there is none, or more than one.
    """
    wanted, keys = sorted(map(tuple, parameters)), model.tensors.keys()
    parts = wanted[0][0].split(".")
    layer = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts) - 1)
    for drop in range(layer):
        tails = [rename(name, drop, "") for name in wanted[0]]
        starts = sorted(
            {
                key.removesuffix(tail)
                for tail in tails
                for key in keys
                if f".{key}".endswith(f".{tail}")
            }
        )
        fitting = [
            start
            for start in starts
            if all(any(rename(n, drop, start) in keys for n in ns) for ns in wanted)
        ]
        if len(fitting) > 1:
            places = ", ".join(start + tails[0] for start in fitting)
            raise GamMergeError(f"{model.place}: {wanted[0][0]} may be any of {places}")
        if fitting:
            return drop, fitting[0]
    missing = next((names[0] for names in wanted if not keys & set(names)), wanted[0][0])
    raise GamMergeError(
        f"{model.place}: has no tensor {missing}; the adapter is of another base model"
    )


def rename(parameter: str, drop: int, start: str) -> str:
    """The key of a parameter after the change that ``common_prefix`` found."""
    return start + ".".join(parameter.split(".")[drop:])
