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
    """A document of a recipe file, for errors that name a line.

    Attributes:
        file: the recipe file.
        document: one of its documents.
        changed: settings of the command line as they were typed, by the keys that they changed.
    """

    file: Path
    document: yaml.Document
    changed: dict[tuple[str | int, ...], str] = field(
        default_factory=dict[tuple[str | int, ...], str]
    )

    def error(self, place: Sequence[str | int], text: object) -> GamMergeError:
        """Return an error that names the line, or the setting of the command line, and the key."""
        key = f"{'.'.join(map(str, place))}: " if place else ""
        for keys, setting in self.changed.items():
            shared = min(len(keys), len(place))
            if shared and keys[:shared] == tuple(place[:shared]):
                return GamMergeError(f"--set {setting}: {key}{text}")
        return GamMergeError(f"{self.file}: line {self.document.line(place)}: {key}{text}")


def override(places: Sequence[Place], setting: str) -> None:
    """Put ``key.key=value`` into the data of a document. Raises GamMergeError."""
    path, equals, value = setting.partition("=")
    place, keys = _addressed(places, path)
    data = place.document.data
    if not equals or not keys or not isinstance(data, dict):
        raise GamMergeError(
            f"--set must be KEY=VALUE, such as weights.0=0.3 or params.density=0.2, got {setting}"
        )
    steps = _steps(data, keys, setting)
    documents = yaml.parse(value, f"--set {setting}")
    parent: Any = data
    for step in steps[:-1]:
        if isinstance(parent, dict) and parent.get(step) is None:
            parent[step] = {}
        _check_settable(parent, step, setting, known=True)
        parent = parent[step]
    _check_settable(parent, steps[-1], setting, known=False)
    parent[steps[-1]] = documents[0].data if documents else None
    place.changed[tuple(steps)] = setting


def _addressed(places: Sequence[Place], path: str) -> tuple[Place, str]:
    """Return the document that a path of keys is about, and the keys within it."""
    head, _, rest = path.partition(".")
    for place in places:
        data = place.document.data
        if rest and isinstance(data, dict) and data.get("name") == head:
            return place, rest
    return places[-1], path


def _steps(data: Mapping[str, Any], keys: str, setting: str) -> list[str | int]:
    """Return the keys one by one.

    ``sources.0.path`` -> ["sources", 0, "path"]; ``weights.a`` -> ["sources", position of a,
    "weight"].
    """
    if not keys.startswith("weights."):
        return list(map(_step, keys.split(".")))
    name = keys.removeprefix("weights.")
    paths = _source_paths(data)
    if name.isdecimal() and int(name) < len(paths):
        return ["sources", int(name), "weight"]
    matches = [i for i, path in enumerate(paths) if name in (path, re.split(r"[/\\:]", path)[-1])]
    if len(matches) != 1:
        raise GamMergeError(
            f"--set {setting}: {len(matches)} sources are called {name!r}; expected one of "
            f"{', '.join(paths)}"
        )
    return ["sources", matches[0], "weight"]


def _step(key: str) -> str | int:
    return int(key) if key.isdecimal() else key


def _source_paths(data: Mapping[str, Any]) -> list[str]:
    """Return the paths of the sources, "" for one that has none."""
    sources = data.get("sources")
    if not isinstance(sources, list):
        return []
    paths: list[str] = []
    for source in sources:
        paths.append(str(source.get("path")) if isinstance(source, dict) else "")
    return paths


def _check_settable(parent: Any, step: str | int, setting: str, *, known: bool) -> None:
    """Raise GamMergeError unless a mapping or a list can have an entry. known: it must have it."""
    if isinstance(parent, dict):
        settable = step in parent or not known
    else:
        settable = isinstance(parent, list) and isinstance(step, int) and step < len(parent)
    if not settable:
        raise GamMergeError(f"--set {setting}: there is no {step!r} to set there")
