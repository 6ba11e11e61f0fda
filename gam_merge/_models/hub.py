"""A base model on the Hub: its config, its index, and the weight files that hold what is needed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import FileTensor
from gam_merge._models.checkpoint import INDEX, Model, read_config, read_index, read_shard
from gam_merge._read.hub import download, explained, first
from gam_merge._read.hub_id import HubId

# Names of the files of a model, as transformers and diffusers write them.
_STEMS = ("model", "diffusion_pytorch_model")


class _Shards(Mapping[str, FileTensor]):
    """Tensors by key. All names are known; the file that holds one is fetched on first access."""

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
    """A model whose ``place`` is a Hub id at the commit that was read."""

    @property
    def notes(self) -> tuple[str, ...]:
        if not isinstance(self.tensors, _Shards):
            return ()
        fetched, total = len(self.tensors.fetched), len(set(self.tensors.places.values()))
        return (
            f"{self.place}: fetched {fetched} of {total} weight files into the cache of "
            "huggingface_hub",
        )


def open_hub_model(hub: HubId) -> Model:
    """Open the model that a Hub id names; its subfolder may be a ``.safetensors`` file.

    Fetches its config, its index and, as tensors are accessed, the files that hold them, all from
    one commit. They stay in the cache of huggingface_hub for the next run. Raises GamMergeError.
    """
    inner = PurePosixPath(hub.subfolder or "")
    if inner.suffix == ".safetensors":
        folder, names = replace(hub, subfolder=str(inner.parent)), [inner.name]
    else:
        folder, names = hub, _weights_names()
    with explained(str(hub)):
        weights = first(folder, [_inside(folder, name) for name in names])
        if weights is None:
            raise GamMergeError(
                f"{hub}: does not hold a model in safetensors; name a directory that does"
            )
        folder = replace(folder, revision=_commit(folder, weights))
        config_file = first(folder, [_inside(folder, "config.json")])
    config: Mapping[str, Any] = read_config(config_file) if config_file else {}
    place = replace(hub, revision=folder.revision)
    if weights.name.endswith(INDEX):
        return _HubModel(place, _Shards(folder, read_index(weights)), config)
    return _HubModel(place, read_shard(weights), config)


def _weights_names() -> list[str]:
    """List the files to ask for: an index, or else a single file."""
    names: list[str] = []
    for stem in _STEMS:
        names += [stem + INDEX, f"{stem}.safetensors"]
    return names


def _commit(folder: HubId, file: Path) -> str:
    """Read the commit off the path of a cached file: .../snapshots/<commit>/<folder>/<file>."""
    depth = len(PurePosixPath(_inside(folder, file.name)).parts)
    return file.parents[depth - 1].name


def _inside(folder: HubId, name: str) -> str:
    """Return the path of a file in its repository."""
    return str(PurePosixPath(folder.subfolder or "") / name)
