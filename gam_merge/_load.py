"""What the user names -> Adapter: a PEFT directory, a safetensors file, a Hub id, or an adapter already in memory."""

import os
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import FileVersion, is_there, read_json
from gam_merge._common.tensors import LazyTensor
from gam_merge._read import peft
from gam_merge._read.adapter import Adapter
from gam_merge._read.hub_id import parse_hub_id
from gam_merge._read.layout import ExpertsLayout
from gam_merge._read.safetensors import floats, read_header

Source = str | PathLike[str] | Adapter


def load(
    source: Source,
    *,
    base_model: str | None = None,
    alpha: float | None = None,
    problems: list[str] | None = None,
) -> Adapter:
    """Open an adapter: headers are read and checked, tensors only when a merge asks for them.

    source: a directory that PEFT wrote, a ``.safetensors`` file or a pickle (``.bin``), a Hub id
    ``org/name[@revision][:subfolder]`` where no path of that name exists (the subfolder may be a file), or an Adapter,
    which is returned as it is. The config of ``X.safetensors`` is ``X.json``, ``X_config.json`` or
    ``adapter_config.json`` beside it; without any of them
    ``base_model`` and ``alpha`` are needed, and the ranks are those of the tensors.

    Raises GamMergeError if the source is missing, not whole, or holds what cannot be merged. With a list of
    ``problems`` what cannot be merged is told there instead, and the adapter is the rest.
    """
    if isinstance(source, Adapter):
        return source
    path, revision = locate(source)
    weights = weights_file(path)
    config_path = path / peft.CONFIG_NAME if path.is_dir() else _config_beside(path)
    version = FileVersion.of(weights)
    tensors, notes = _read_tensors(weights, problems)
    if config_path is not None and (config_path.is_file() or path.is_dir()):
        config = _read_config(config_path)
    elif alpha is None or base_model is None:
        raise GamMergeError(
            f"{path}: no config beside it ({path.stem}.json, {path.stem}_config.json or {peft.CONFIG_NAME}); "
            "give --base and --alpha (base_model= and alpha= in Python)"
        )
    else:
        config = {}
    told = {"base_model_name_or_path": base_model, "lora_alpha": alpha}
    given = {
        name: value for name, value in told.items() if value is not None and name not in config
    }
    adapter = peft.parse_adapter(
        str(source), {**config, **given}, tensors, path=str(weights), problems=problems
    )
    if config_path is not None and path.is_file() and config_path.name == peft.CONFIG_NAME:
        _check_belongs(path, adapter)
    return replace(
        adapter,
        given=given,
        file=weights.absolute(),
        version=version,
        revision=revision,
        notes=notes,
    )


def _read_tensors(
    weights: Path, problems: list[str] | None
) -> tuple[Mapping[str, LazyTensor], tuple[str, ...]]:
    """The tensors of a file, and what to say of it."""
    if weights.suffix == Path(peft.PICKLE_NAME).suffix:
        from gam_merge._read.pickled import NOTE, read_pickle

        return read_pickle(weights), (NOTE,)
    tensors, _ = read_header(weights, any_dtype=problems is not None)
    return tensors if problems is None else floats(tensors, problems), ()


def _check_belongs(path: Path, adapter: Adapter) -> None:
    """A config that several files may share says nothing of which it is for: ranks are checked in any case, and where
    it names modules as a list, those of the file must be among them."""
    listed = adapter.config.get("target_modules")
    others = [file for file in path.parent.glob("*.safetensors") if file != path]
    if not others or not isinstance(listed, list):
        return
    for name, module in adapter.modules.items():
        if not isinstance(module.layout, ExpertsLayout) and not any(
            f".{name}".endswith(f".{e}") for e in listed
        ):
            raise GamMergeError(
                f"{path}: module {name} is none that the {peft.CONFIG_NAME} beside it and {others[0].name} names; "
                f"put its own beside it as {path.stem}.json"
            )


def locate(source: str | PathLike[str]) -> tuple[Path, str | None]:
    """The path that a source names, and its commit if it is from the Hub. Raises GamMergeError."""
    try:
        str(source).encode()
    except UnicodeEncodeError as error:
        raise GamMergeError(
            f"{source}: its name is not UTF-8, so no recipe can hold it; rename it"
        ) from error
    path = Path(source)
    if not is_there(path) and isinstance(source, str) and (hub := parse_hub_id(source)):
        from gam_merge._read.hub import fetch

        return fetch(hub)
    return path, None


def weights_file(path: Path) -> Path:
    """The file of weights that the path of an adapter stands for. Raises GamMergeError."""
    if path.is_dir():
        files = (path / peft.WEIGHTS_NAME, path / peft.PICKLE_NAME)
        weights = next((file for file in files if is_there(file) and file.is_file()), None)
        if weights is None:
            raise GamMergeError(
                f"{path}: no {peft.WEIGHTS_NAME} in this directory; name the directory that PEFT saved"
            )
        return weights
    if not path.is_file():
        raise GamMergeError(f"{path}: no such file or directory")
    return path


def _config_beside(path: Path) -> Path | None:
    beside = (path.with_name(name) for name in peft.config_names(path))
    return next(
        filter(os.path.isfile, beside), None
    )  # the name of one of them may be too long to be


def _read_config(path: Path) -> Mapping[str, Any]:
    config = read_json(path, hint="; PEFT writes it beside the weights")
    base = config.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise GamMergeError(f"{path}: base_model_name_or_path is {base!r}, not a name")
    return config
