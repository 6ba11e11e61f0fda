"""``load``: a directory, a file, a Hub id, or an adapter that is already in memory -> Adapter."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import FileVersion, is_there, read_json
from gam_merge._common.tensors import LazyTensor
from gam_merge._lineup.options import BaseModel
from gam_merge._lineup.request import alphas_of
from gam_merge._read.adapter import Adapter
from gam_merge._read.containers import read_tensors
from gam_merge._read.format import Contents, Format
from gam_merge._read.formats import config_names, file_suffixes, recognized, weights_names
from gam_merge._read.hub_id import HubId, parse_hub_id
from gam_merge._read.whole_model import check_directory

Source = str | PathLike[str] | HubId | Adapter


def load(
    source: Source,
    *,
    base_model: str | None = None,
    alpha: float | None = None,
    problems: list[str] | None = None,
) -> Adapter:
    """Open an adapter.

    Headers are read and checked at once, tensors only when a merge asks for them, but for alphas
    and the two factors of a LoKr that is cut. LyCORIS's LoCon, LoHa and LoKr become plain LoRA.

    Args:
        source: a directory that PEFT, diffusers or MLX-LM wrote; a ``.safetensors`` file of one of
            these or of kohya's grammar, a ``.gguf`` of llama.cpp, or a pickle (``.bin``, ``.pt``,
            ``.ckpt``); or a Hub id ``org/name[@revision][:subfolder]`` where no path of that name
            exists (the subfolder may be a file), or a ``HubId``, which is never a path. PEFT's
            config of ``X.safetensors`` is ``X.json``, ``X_config.json`` or ``adapter_config.json``
            next to it. An ``Adapter`` is returned as it is.
        base_model: the model that the adapter was trained on, for files that do not name it.
        alpha: the alpha of all modules, for a file without a config; their ranks are those of the
            tensors.
        problems: a list to which everything that cannot be merged is added, instead of raising an
            error; the adapter is then the rest.

    Returns:
        Adapter: modules by name with the shapes, dtypes and scales of their factors.

    Raises:
        GamMergeError: if the source is missing or incomplete, or holds what cannot be merged.

    Example:
        >>> adapter = gm.load("examples/adapters/addition")
        >>> len(adapter.modules), adapter.rank, adapter.alpha
        (210, 8, 16)
    """
    if isinstance(source, Adapter):
        return source
    path, revision = locate(source)
    weights = weights_file(path)
    version = FileVersion.of(weights)
    tensors, metadata, notes = _read_tensors(weights, problems)
    contents = Contents(
        source=str(source),
        where=str(weights),
        tensors=tensors,
        metadata=metadata,
        base_model=base_model,
        alpha=alpha,
        file=weights,
        bare=path == weights,
    )
    form, contents = recognized(partial(_with_config, contents, path), weights.name)
    adapter = form.parse(contents, problems)
    notes = (*notes, *adapter.notes)
    return replace(
        adapter,
        file=weights.absolute(),
        version=version,
        config_file=contents.config_file and contents.config_file.absolute(),
        config_version=contents.config_version,
        revision=revision,
        notes=notes,
    )


def load_all(
    sources: Sequence[Source],
    base_model: BaseModel | None = None,
    alpha: float | Sequence[float] | None = None,
) -> list[Adapter]:
    """Open the adapters of a merge.

    alpha: one for all or one per source. Raises GamMergeError.
    """
    if isinstance(sources, str | PathLike):
        raise GamMergeError(f"sources must be a list of adapters, got the one path {sources}")
    if not sources:
        raise GamMergeError("no adapters to merge; give at least one source")
    alphas = alphas_of(alpha, len(sources))
    name: str | None = None
    if base_model is not None and not isinstance(base_model, Mapping):
        name = str(base_model)
    adapters: list[Adapter] = []
    for source, source_alpha in zip(sources, alphas, strict=True):
        adapters.append(load(source, base_model=name, alpha=source_alpha))
    return adapters


def _with_config(contents: Contents, path: Path, form: Format) -> Contents:
    """Return the files of an adapter with the config that a format finds next to the weights."""
    assert contents.file is not None
    file = _config_file(form, path, contents.file)
    if file is None:
        return replace(contents, config=None, config_file=None, config_version=None)
    version = FileVersion.of(file, hint=_CONFIG_HINT)
    config = read_json(file, hint=_CONFIG_HINT)
    return replace(contents, config=config, config_file=file, config_version=version)


_PICKLES = (".bin", ".pt", ".ckpt")
_CONFIG_HINT = "; it is expected next to the weights"


def _read_tensors(
    weights: Path, problems: list[str] | None
) -> tuple[Mapping[str, LazyTensor], Mapping[str, str], tuple[str, ...]]:
    """Return the tensors and the metadata of a file, and notes on how it was read."""
    if weights.suffix in _PICKLES:
        from gam_merge._read.pickled import NOTE, read_pickle

        return read_pickle(weights), {}, (NOTE,)
    return *read_tensors(weights, problems), ()


def _config_file(form: Format, path: Path, weights: Path) -> Path | None:
    """Return the file of the config, which must be in a directory of the format."""
    if form.config_name is not None and path.is_dir() and weights.name in form.weights_names:
        return path / form.config_name
    for name in form.config_names(weights):
        file = weights.with_name(name)
        if os.path.isfile(file):  # not is_file(): the name may be too long to be one
            return file
    return None


def config_file(path: Path) -> Path | None:
    """Return the file of the config that the path of an adapter means, if it has one.

    Raises GamMergeError.
    """
    weights = weights_file(path)
    tensors, metadata, _ = _read_tensors(weights, [])
    contents = Contents(str(path), str(weights), tensors, metadata, file=weights)
    _, contents = recognized(partial(_with_config, contents, path), weights.name)
    return contents.config_file


def locate(source: str | PathLike[str] | HubId) -> tuple[Path, str | None]:
    """Return the path that a source names, and its commit if it is from the Hub.

    Raises GamMergeError.
    """
    if isinstance(source, HubId):
        return _fetched(source)
    try:
        str(source).encode()
    except UnicodeEncodeError as error:
        raise GamMergeError(
            f"{source}: its name is not UTF-8, so no recipe can hold it; rename it"
        ) from error
    path = Path(source)
    if not is_there(path) and isinstance(source, str) and (hub := parse_hub_id(source)):
        return _fetched(hub)
    return path, None


def _fetched(hub: HubId) -> tuple[Path, str]:
    """Return where an adapter of the Hub lies in the cache, and its commit."""
    from gam_merge._read.hub import fetch  # loads huggingface_hub's errors, which takes a while

    return fetch(hub)


def weights_file(path: Path) -> Path:
    """Return the file of weights that the path of an adapter means. Raises GamMergeError."""
    if path.is_dir():
        names = weights_names()
        for name in names:
            if is_there(path / name) and (path / name).is_file():
                return path / name
        check_directory(path)
        return _only_file(path, names)
    if not path.is_file():
        raise GamMergeError(f"{path}: no such file or directory")
    return path


def _only_file(directory: Path, names: Sequence[str]) -> Path:
    """Return the one file of weights in a directory without a config, whatever it is called."""
    if not any((directory / name).is_file() for name in config_names()):
        files = sorted(file for file in directory.iterdir() if file.suffix in file_suffixes())
        if len(files) == 1:
            return files[0]
        if files:
            listed = ", ".join(file.name for file in files[:5])
            raise GamMergeError(
                f"{directory}: holds {len(files)} files of weights; name one of them: {listed}"
            )
    raise GamMergeError(
        f"{directory}: no {names[0]} in this directory; name the directory of an adapter "
        f"({', '.join(names)})"
    )
