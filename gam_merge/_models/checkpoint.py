"""A whole model, known from the headers of its safetensors files and from its config."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import is_there, read_json
from gam_merge._common.tensors import FileTensor
from gam_merge._read.hub_id import HubId
from gam_merge._read.safetensors import read_header

# Conv1D of transformers keeps its weight as (in, out). These models use it, under these names.
_CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
_CONV1D_NAMES = {"c_attn", "c_proj", "c_fc", "q_attn"}
INDEX = ".safetensors.index.json"  # end of the name of the file that maps tensors to files
# Files left out of a copy: weights in any format, and descriptions of the model as it was.
_LEFT_OUT = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx"),
    ".md",
}


@dataclass(frozen=True)
class Model:
    """The tensors of a model, by key.

    ``place`` is where it was found, ``config`` its config.json.
    """

    place: Path | HubId
    tensors: Mapping[str, FileTensor]
    config: Mapping[str, Any]

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on how it was read."""
        return ()


@dataclass(frozen=True)
class Checkpoint(Model):
    """A model in the directory ``path``; ``shards`` are its tensors by file."""

    path: Path
    shards: Mapping[str, Mapping[str, FileTensor]]
    index: str | None = None  # the name of the index, if there are several files

    def companions(self) -> list[Path]:
        """List the files that a copy needs besides weights: config, tokenizer, code, licence."""
        return [path for path in sorted(self.path.iterdir()) if _is_companion(path)]


def _is_companion(path: Path) -> bool:
    hidden, index = path.name.startswith("."), path.name.endswith(".index.json")
    return path.is_file() and not hidden and not index and path.suffix not in _LEFT_OUT


def open_checkpoint(source: str | PathLike[str], *, only: str | None = None) -> Checkpoint:
    """Open a directory that ``save_pretrained`` wrote, or ``only`` one file in it.

    Raises GamMergeError if it does not hold a complete set of safetensors files.
    """
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
    if len(files) == 1 and not indices:
        return _checkpoint(path, path, {files[0].name: read_shard(files[0])}, config)
    names = ", ".join(file.name for file in indices or files) or "none"
    raise GamMergeError(
        f"{path}: must hold one safetensors file, or several and one index, got: {names}"
    )


def _checkpoint(
    place: Path,
    path: Path,
    shards: Mapping[str, Mapping[str, FileTensor]],
    config: Mapping[str, Any],
    index: str | None = None,
) -> Checkpoint:
    tensors: dict[str, FileTensor] = {}
    for shard in shards.values():
        tensors |= shard
    return Checkpoint(place, tensors, config, path, shards, index)


def _indexed(path: Path, index: Path) -> dict[str, Mapping[str, FileTensor]]:
    places = read_index(index)
    return {name: read_shard(path / name, places) for name in sorted(set(places.values()))}


def read_config(file: Path) -> dict[str, Any]:
    """Read the config.json of a model, and check the types of the fields that we use.

    Raises GamMergeError.
    """
    config = read_json(file)
    if not isinstance(config.get("model_type"), str | None):
        raise GamMergeError(f"{file}: model_type must be a string")
    if not isinstance(config.get("architectures"), list | None):
        raise GamMergeError(f"{file}: architectures must be a list")
    return config


def read_index(index: Path) -> dict[str, str]:
    """Read which tensor is in which file next to the index. Raises GamMergeError."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(map(_is_shard, places.values())):
        raise GamMergeError(
            f"{index}: does not say which tensor is in which safetensors file of this directory"
        )
    return places


def _is_shard(name: Any) -> bool:
    """Tell whether a copy of the model may have such a file.

    In its own directory, and not in place of a companion.
    """
    return (
        isinstance(name, str)
        and name.isprintable()
        and name == Path(name).name
        and name.endswith(".safetensors")
    )


def read_shard(file: Path, places: Mapping[str, str] = {}) -> Mapping[str, FileTensor]:
    """Read the header of a file.

    places: file names by key. Raises GamMergeError if a tensor is missing that belongs here.
    """
    tensors, _ = read_header(file, any_dtype=True)
    for key, place in places.items():
        if place == file.name and key not in tensors:
            raise GamMergeError(
                f"{file}: lacks tensor {key}, which the index next to it assigns to this file"
            )
    return tensors


def is_conv1d(model: Model, module: str) -> bool:
    """Tell whether the weight of a module is kept as (in, out), as far as the config shows."""
    known = model.config.get("model_type") in _CONV1D_MODELS
    return known and module.rpartition(".")[2] in _CONV1D_NAMES


def common_prefix(model: Model, parameters: Iterable[Sequence[str]]) -> tuple[int, str]:
    """Find how the names of a model in memory become keys of its file.

    parameters: for each parameter, the names that it may have.

    Returns how many leading parts to drop and what to put in front: (0, "") for most models; but a
    checkpoint without a head lacks the "model." of a causal model, say. The change must fit all
    parameters; the one that drops least wins, and none drops the number of a layer.

    Raises GamMergeError if there is no such change, or more than one.
    """
    wanted, keys = sorted(map(tuple, parameters)), model.tensors.keys()
    first = wanted[0]
    for drop in range(_parts_before_layer(first[0])):
        prefixes = [p for p in _prefixes(keys, first, drop) if _fits(keys, wanted, drop, p)]
        if len(prefixes) > 1:
            places = ", ".join(rename(first[0], drop, prefix) for prefix in prefixes)
            raise GamMergeError(f"{model.place}: {first[0]} may be any of {places}")
        if prefixes:
            return drop, prefixes[0]
    missing = next((names[0] for names in wanted if not keys & set(names)), first[0])
    raise GamMergeError(
        f"{model.place}: has no tensor {missing}; the adapter belongs to another base model"
    )


def _parts_before_layer(parameter: str) -> int:
    """Count the parts of a name before its first number, or before the last part."""
    parts = parameter.split(".")
    return next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts) - 1)


def _prefixes(keys: Collection[str], names: Sequence[str], drop: int) -> list[str]:
    """List what stands before one of the names in the keys, once ``drop`` parts are dropped."""
    prefixes: set[str] = set()
    for name in names:
        tail = rename(name, drop, "")
        prefixes.update(key.removesuffix(tail) for key in keys if f".{key}".endswith(f".{tail}"))
    return sorted(prefixes)


def _fits(
    keys: Collection[str], parameters: Iterable[Sequence[str]], drop: int, prefix: str
) -> bool:
    """Tell whether all parameters are among the keys once they are renamed."""
    return all(_has_key(keys, names, drop, prefix) for names in parameters)


def _has_key(keys: Collection[str], names: Sequence[str], drop: int, prefix: str) -> bool:
    return any(rename(name, drop, prefix) in keys for name in names)


def rename(parameter: str, drop: int, prefix: str) -> str:
    """Return the key of a parameter, by the change that ``common_prefix`` found."""
    return prefix + ".".join(parameter.split(".")[drop:])
