"""The record of a merge: what it was made of, without its tensors."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gam_merge._common.files import FileVersion
from gam_merge._common.types import Setting
from gam_merge._read.hub_id import HubId, parse_hub_id


@dataclass(frozen=True)
class RecordedSource:
    """One adapter of a merge, without its tensors: it may be kept for long."""

    source: str
    weight: Setting
    rank: int
    alpha: float | None  # of its config
    given: Mapping[str, Any]  # base_model and alpha, as far as the user had to give them
    file: Path | None
    version: FileVersion | None
    config_file: Path | None
    config_version: FileVersion | None
    revision: str | None
    made_by: "Record | None"

    def name(self, home: Path | None) -> str:
        """Return a Hub id at its commit, or a path.

        The path is relative to ``home``; without one it is the last part of it.
        """
        if self.revision is not None:
            hub = parse_hub_id(self.source)
            assert hub is not None, self.source
            return str(replace(hub, revision=self.revision))
        if self.file is None:
            return self.source
        named = self.file if Path(self.source).name == self.file.name else self.file.parent
        return _seen_from(home, named)


@dataclass(frozen=True)
class Record:
    """A merge as it was done, every default filled in."""

    method: str
    params: Mapping[str, Setting]
    sources: tuple[RecordedSource, ...]
    anchor: int
    missing: str
    allow_base_mismatch: bool
    base: Path | HubId | None  # where the base model was read, if it was
    output: Mapping[str, Any]  # as a recipe has it

    @property
    def repeatable(self) -> bool:
        """Whether all of it began with files."""
        return all(source.file or source.made_by for source in self.sources)

    def base_name(self, home: Path | None) -> str | None:
        """Return the base model as a recipe in ``home`` names it."""
        if self.base is None:
            return None
        return str(self.base) if isinstance(self.base, HubId) else _seen_from(home, self.base)


def _seen_from(home: Path | None, path: Path) -> str:
    """Return a path relative to ``home``; without one the last part of it."""
    if home is None:
        return path.name
    relative = Path(os.path.relpath(path, home.absolute())).as_posix()
    # "./" in front: never to be taken for a name or a Hub id
    return relative if relative.startswith("..") else f"./{relative}"
