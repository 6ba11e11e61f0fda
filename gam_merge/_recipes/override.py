"""``--set KEY=VALUE``: settings of the command line that replace those of a recipe file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gam_merge._common import yaml
from gam_merge._common.errors import GamMergeError


@dataclass(frozen=True)
class Place:
    """A document of a recipe file, which can name the line of an error.

    ``changed`` maps the places that the command line changed to the settings as typed.
    """

    file: Path
    document: yaml.Document
    changed: dict[tuple[str | int, ...], str] = field(
        default_factory=dict[tuple[str | int, ...], str]
    )

    def error(self, place: Sequence[str | int], text: object) -> GamMergeError:
        """Return an error that names the key, and its line or its setting on the command line."""
        key = f"{'.'.join(map(str, place))}: " if place else ""
        for changed, setting in self.changed.items():
            shared = min(len(changed), len(place))
            if shared and changed[:shared] == tuple(place[:shared]):
                return GamMergeError(f"--set {setting}: {key}{text}")
        return GamMergeError(f"{self.file}: line {self.document.line(place)}: {key}{text}")


def override(places: Sequence[Place], setting: str) -> None:
    """Put the value of ``key.key=value`` into the data of a document."""
    path, equals, value = setting.partition("=")
    place, keys = _addressed(places, path)
    data = place.document.data
    if not equals or not keys or not isinstance(data, dict):
        raise GamMergeError(
            f"--set {setting}: must be KEY=VALUE, for instance weights.0=0.3 or params.density=0.2"
        )
    steps = _steps(data, keys, setting)
    documents = yaml.parse(value, f"--set {setting}")
    parent: Any = data
    for step in steps[:-1]:
        if isinstance(parent, dict):
            parent.setdefault(step, {})
        parent = _item(parent, step, setting)
    last = steps[-1]
    if not _has_place_for(parent, last):
        raise _no_place(last, setting)
    parent[last] = documents[0].data if documents else None
    place.changed[tuple(steps)] = setting


def _addressed(places: Sequence[Place], path: str) -> tuple[Place, str]:
    """Return the document that a path of keys addresses, and the keys within it."""
    name, _, keys = path.partition(".")
    for place in reversed(places):
        data = place.document.data
        if keys and isinstance(data, dict) and data.get("name") == name:
            return place, keys
    return places[-1], path


def _steps(data: Mapping[str, Any], keys: str, setting: str) -> list[str | int]:
    """Split ``sources.0.path`` into ["sources", 0, "path"].

    ``weights.a`` becomes ["sources", position of a, "weight"].
    """
    if not keys.startswith("weights."):
        return [_step(word) for word in keys.split(".")]
    name = keys.removeprefix("weights.")
    paths = _source_paths(data)
    if name.isdecimal() and int(name) < len(paths):
        return ["sources", int(name), "weight"]
    positions = []
    for i, path in enumerate(paths):
        if path == name or re.split(r"[/\\:]", path)[-1] == name:
            positions.append(i)
    if len(positions) != 1:
        raise GamMergeError(
            f"--set {setting}: {len(positions)} sources are called {name!r}; "
            f"the sources are {', '.join(paths)}"
        )
    return ["sources", positions[0], "weight"]


def _step(word: str) -> str | int:
    return int(word) if word.isdecimal() else word


def _source_paths(data: Mapping[str, Any]) -> list[str]:
    """Return the paths of the sources, "" for what is not a source."""
    sources = data.get("sources")
    return [_path(source) for source in sources] if isinstance(sources, list) else []


def _path(source: Any) -> str:
    return str(source.get("path")) if isinstance(source, dict) else ""


def _item(parent: Any, step: str | int, setting: str) -> Any:
    """Return an entry of a mapping or a list."""
    if not _has_place_for(parent, step) or (isinstance(parent, dict) and step not in parent):
        raise _no_place(step, setting)
    return parent[step]


def _has_place_for(parent: Any, step: str | int) -> bool:
    """Return whether a value can be set: at any key of a mapping, at a position of a list."""
    if isinstance(parent, list):
        return isinstance(step, int) and step < len(parent)
    return isinstance(parent, dict)


def _no_place(step: str | int, setting: str) -> GamMergeError:
    return GamMergeError(f"--set {setting}: there is no {step!r} to set")
