"""``--set KEY=VALUE``: settings of the command line over those of a recipe file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gam_merge._common import yaml
from gam_merge._common.errors import GamMergeError


@dataclass(frozen=True)
class Place:
    """A document of a recipe file, to say where in it something is wrong."""

    file: Path
    document: yaml.Document
    changed: dict[tuple[str | int, ...], str] = field(
        default_factory=dict[tuple[str | int, ...], str]
    )
    """What the command line changed: place -> as typed."""

    def error(self, place: Sequence[str | int], text: object) -> GamMergeError:
        """An error that names the line, or the setting of the command line, and the key."""
        key = f"{'.'.join(map(str, place))}: " if place else ""
        for where, setting in self.changed.items():
            shared = min(len(where), len(place))
            if shared and where[:shared] == tuple(place[:shared]):
                return GamMergeError(f"--set {setting}: {key}{text}")
        return GamMergeError(f"{self.file}: line {self.document.line(place)}: {key}{text}")


def override(places: Sequence[Place], setting: str) -> None:
    """Put ``key.key=value`` into the data of a document."""
    path, equals, value = setting.partition("=")
    tables = [place for place in places if isinstance(place.document.data, dict)]
    named = {
        name: place for place in tables if isinstance(name := place.document.data.get("name"), str)
    }
    head, _, rest = path.partition(".")
    place, keys = (named[head], rest) if head in named and rest else (places[-1], path)
    if not equals or not keys or not isinstance(place.document.data, dict):
        raise GamMergeError(
            f"--set {setting}: is not KEY=VALUE, for instance weights.0=0.3 or params.density=0.2"
        )
    steps = _steps(place.document.data, keys, setting)
    documents = yaml.parse(value, f"--set {setting}")
    parent: Any = place.document.data
    for step in steps[:-1]:
        missing = isinstance(parent, dict) and parent.get(step) is None
        parent = parent.setdefault(step, {}) if missing else _item(parent, step, setting)
    _item(parent, steps[-1], setting, put=documents[0].data if documents else None)
    place.changed[tuple(steps)] = setting


def _steps(data: Mapping[str, Any], keys: str, setting: str) -> list[str | int]:
    """``sources.0.path`` -> ["sources", 0, "path"]; ``weights.a`` -> ["sources", position of a, "weight"]."""
    if not keys.startswith("weights."):
        return [int(step) if step.isdecimal() else step for step in keys.split(".")]
    name = keys.removeprefix("weights.")
    sources = data.get("sources")
    paths = (
        [str(s.get("path")) if isinstance(s, dict) else "" for s in sources]
        if isinstance(sources, list)
        else []
    )
    if name.isdecimal() and int(name) < len(paths):
        return ["sources", int(name), "weight"]
    found = [
        i for i, path in enumerate(paths) if path == name or re.split(r"[/\\:]", path)[-1] == name
    ]
    if len(found) != 1:
        raise GamMergeError(
            f"--set {setting}: {len(found)} sources are called {name!r}; there are: {', '.join(paths)}"
        )
    return ["sources", found[0], "weight"]


_NOTHING = object()


def _item(parent: Any, step: str | int, setting: str, put: Any = _NOTHING) -> Any:
    """An entry of a mapping or a list, or a new value for it."""
    inside = isinstance(parent, dict) or (
        isinstance(parent, list) and isinstance(step, int) and step < len(parent)
    )
    if not inside or (put is _NOTHING and isinstance(parent, dict) and step not in parent):
        raise GamMergeError(f"--set {setting}: there is no {step!r} to set there")
    if put is not _NOTHING:
        parent[step] = put
    return parent[step]
