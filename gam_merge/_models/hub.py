"""A base model on the Hub: its config and index, and those files of its weights that hold what is asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import FileTensor
from gam_merge._models.checkpoint import INDEX, Model, read_config, read_index, read_shard
from gam_merge._read.hub import download, explained, first
from gam_merge._read.hub_id import HubId

_STEMS = (
    "model",
    "diffusion_pytorch_model",
)  # what transformers and diffusers call the files of a model


class _Shards(Mapping[str, FileTensor]):
    """Tensors by key. The names of all are known; the file that holds one is fetched when it is asked for."""

    def __init__(self, folder: HubId, places: Mapping[str, str]) -> None:
        self.folder, self.places = folder, places
        self.fetched: dict[str, Mapping[str, FileTensor]] = {}

    def __getitem__(self, key: str) -> FileTensor:
        name = self.places[key]
        if name not in self.fetched:
            with explained(str(self.folder)):
                file = download(self.folder, _inside(self.folder, name))
            self.fetched[name] = read_shard(file, self.places)
        return self.fetched[name][key]

    def __contains__(self, key: object) -> bool:
        return key in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class _HubModel(Model):
    """Its ``place`` is a Hub id at the commit that it was read at."""

    @property
    def notes(self) -> tuple[str, ...]:
        if not isinstance(self.tensors, _Shards):
            return ()
        fetched, there = len(self.tensors.fetched), len(set(self.tensors.places.values()))
        return (
            f"{self.place}: {fetched} of {there} files of its weights, kept in the cache of huggingface_hub",
        )


def open_hub_model(hub: HubId) -> Model:
    """The model that a Hub id names; its subfolder may be a ``.safetensors`` file. Raises GamMergeError.

    Fetched are its config, its index and, tensor by tensor as they are looked at, the files that hold them, all from
    one commit. They stay in the cache of huggingface_hub, where the next run finds them.
    """
    inner = PurePosixPath(hub.subfolder or "")
    single = inner.suffix == ".safetensors"
    folder = replace(hub, subfolder=str(inner.parent) if single else hub.subfolder)
    names = (
        [inner.name]
        if single
        else [name for stem in _STEMS for name in (stem + INDEX, f"{stem}.safetensors")]
    )
    with explained(str(hub)):
        found = first(folder, [_inside(folder, name) for name in names])
        if found is None:
            raise GamMergeError(
                f"{hub}: holds no safetensors of a model; name a directory that does"
            )
        depth = len(PurePosixPath(_inside(folder, found.name)).parts)
        commit = found.parents[depth - 1].name  # .../snapshots/<commit>/<folder>/<file>
        folder = replace(folder, revision=commit)
        config_file = first(folder, [_inside(folder, "config.json")])
    config: Mapping[str, Any] = read_config(config_file) if config_file else {}
    place = replace(hub, revision=commit)
    if found.name.endswith(INDEX):
        return _HubModel(place, _Shards(folder, read_index(found)), config)
    return _HubModel(place, read_shard(found), config)


def _inside(folder: HubId, name: str) -> str:
    """The path of a file in its repository."""
    return str(PurePosixPath(folder.subfolder or "") / name)
