"""The formats that are known, in the order in which they are asked."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath

from gam_merge._read.adapter import Adapter
from gam_merge._read.format import Format
from gam_merge._read.mlx import Mlx
from gam_merge._read.peft import Peft

_DEFAULT = Peft()
FORMATS: list[Format] = [_DEFAULT, Mlx()]


def recognized(keys: Collection[str], metadata: Mapping[str, str]) -> Format:
    """Return the format of a file with these keys; PEFT's, which explains errors, if none fits."""
    for form in FORMATS:
        if form.recognizes(keys, metadata):
            return form
    return _DEFAULT


def format_of(adapters: Sequence[Adapter]) -> Format:
    """Return the format in which a merge of these adapters is written: theirs, if they share it."""
    names = {adapter.format for adapter in adapters}
    for form in FORMATS:
        if names == {form.name}:
            return form
    return _DEFAULT


def format_in(directory: Path) -> Format:
    """Return the format of the adapter that we wrote into a directory; PEFT's if there is none."""
    for form in FORMATS:
        if (directory / form.weights_names[0]).is_file():
            return form
    return _DEFAULT


def weights_names() -> list[str]:
    """Return how the files of weights are called in the directories of all formats."""
    names: list[str] = []
    for form in FORMATS:
        names += form.weights_names
    return _unique(names)


def config_names() -> list[str]:
    """Return how the configs are called in the directories of all formats that have one."""
    return _unique([form.config_name for form in FORMATS if form.config_name is not None])


def config_names_next_to(weights: PurePath) -> list[str]:
    """Return how the config of a bare file may be called, in all formats."""
    names: list[str] = []
    for form in FORMATS:
        names += form.config_names(weights)
    return _unique(names)


def _unique(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))
