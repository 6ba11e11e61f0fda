"""Where a merge lies: a directory, or a file with the texts about it in a directory next to it."""

from dataclasses import dataclass
from pathlib import Path

from gam_merge._read.formats import file_suffixes, format_in

_COMPANIONS = ".gam-merge"


@dataclass(frozen=True)
class Place:
    """A merge on disk.

    Attributes:
        path: what was written.
        weights: the file of weights.
        home: the directory of report, recipe and card.
        config_name: how its config is called, if its format has one.
    """

    path: Path
    weights: Path
    home: Path
    config_name: str | None = None

    @property
    def names(self) -> list[str]:
        """The names of its weights and its config."""
        names = [self.weights.name]
        return names if self.config_name is None else [*names, self.config_name]

    def file(self, name: str) -> Path:
        """Return one of its files by name."""
        return self.weights if name == self.weights.name else self.home / name


def place_of(path: Path) -> Place:
    """Return where a merge lies that was written to a path, or the texts about which are there."""
    path = _file_about(path) or path
    if is_file_name(path) and not path.is_dir():
        return Place(path, path, companions_of(path))
    form = format_in(path)
    return Place(path, path / form.weights_names[0], path, form.config_name)


def is_file_name(out: Path) -> bool:
    """Tell whether an output of this name is a file, by its suffix."""
    return out.suffix in file_suffixes()


def _file_about(home: Path) -> Path | None:
    """Return the file of weights that the texts in a directory are about, if there is one."""
    if home.suffix != _COMPANIONS or not home.is_dir():
        return None
    files = [home.with_suffix(suffix) for suffix in file_suffixes()]
    return next((file for file in files if file.is_file()), None)


def companions_of(file: Path) -> Path:
    """Return the directory of the texts about a file of weights."""
    return file.with_name(f"{file.stem}{_COMPANIONS}")
