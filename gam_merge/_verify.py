"""``verify``: whether a merge on disk is still what was written, and its sources what they were.

Everything is checked against the recipe: it has the sha256 of weights and config, of the output and
of each source. The card repeats it, and the metadata of the weights repeat method and sources.
Nothing is signed: who may write all of these files can make them agree.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import read_text, sha256
from gam_merge._load import config_file, locate, weights_file
from gam_merge._read.containers import read_metadata
from gam_merge._read.place import Place, place_of
from gam_merge._recipe import merge_recipe
from gam_merge._recipes.file import located, parse_recipes
from gam_merge._recipes.recipe import Recipe, RecipeSource
from gam_merge._write.adapter import CARD_NAME, RECIPE_NAME
from gam_merge._write.provenance import METHOD_KEY, ORIGINS_KEY, origins

Kind = Literal["output", "record", "source", "rerun"]
State = Literal["holds", "differs", "missing", "unknown"]

_FENCE = re.compile(r"(`{3,})yaml")  # a line of a card that opens its recipe
_METADATA = "metadata of the weights"


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        kind: a file of the output, a record that the recipe is compared with, a source, or the
            output of the same merge done again.
        name: the file or record.
        state: "missing" if it cannot be read, "unknown" if nothing was recorded to compare with.
        note: more in words.

    Example:
        >>> gm.merge(["examples/adapters/addition"], method="mean", out="merged").path.name
        'merged'
        >>> check = gm.verify("merged").checks[0]
        >>> check.name, check.state
        ('adapter_model.safetensors', 'holds')
    """

    kind: Kind
    name: str
    state: State
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """All checks of a merge on disk.

    Attributes:
        path: the directory.
        checks: one per file, record and source.

    Example:
        >>> _ = gm.merge(["examples/adapters/addition"], method="mean", out="merged")
        >>> gm.verify("merged").holds
        True
    """

    path: Path
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks of what differs or is missing."""
        return tuple(check for check in self.checks if check.state in ("differs", "missing"))

    @property
    def holds(self) -> bool:
        """Whether nothing differs and nothing is missing."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        checks = [asdict(check) for check in self.checks]
        return {"path": str(self.path), "holds": self.holds, "checks": checks}


def verify(
    path: str | PathLike[str],
    *,
    sources: bool = True,
    rerun: bool = False,
    device: str | torch.device = "auto",
) -> Verification:
    """Check a merge against the hashes that its recipe records, and the records against each other.

    Args:
        path: a directory or a file that a merge wrote.
        sources: also read the files of the sources; those on the Hub are fetched at their commit
            unless they are in the cache.
        rerun: do the merge again, in a temporary directory: it must give the same bytes. They
            depend on nothing but the sources, the versions of gam-merge and torch, and the kind of
            machine.
        device: for ``rerun``; ``"auto"`` takes a GPU if there is one.

    Returns:
        Verification: every check and its state.

    Raises:
        GamMergeError: if the recipe is missing or cannot be read.

    Example:
        >>> sources = ["examples/adapters/addition", "examples/adapters/sorting"]
        >>> _ = gm.merge(sources, out="merged")
        >>> [check.state for check in gm.verify("merged", rerun=True).checks]
        ['holds', 'holds', 'holds', 'holds', 'holds', 'holds', 'holds', 'holds', 'holds']
    """
    place = place_of(Path(path))
    file = place.home / RECIPE_NAME
    recipes = parse_recipes(read_text(file), file)
    checks = [
        *_outputs(place, recipes[-1]),
        _metadata(place.weights, recipes),
        _card(place.home, recipes),
    ]
    if sources:
        checks += _sources(file, recipes)
    if rerun:
        checks.append(_rerun(file, recipes[-1], place, device))
    return Verification(Path(path), tuple(checks))


def _outputs(place: Place, recipe: Recipe) -> Iterator[Check]:
    """Check the files of the output against the recipe."""
    recorded = recipe.output.sha256 or {}
    for name in dict.fromkeys([*place.names, *recorded]):
        yield _digest("output", name, partial(place.file, name), recorded.get(name))


def _sources(file: Path, recipes: Sequence[Recipe]) -> Iterator[Check]:
    """Check every file that the merges of a recipe began with, once."""
    names = {recipe.name for recipe in recipes}
    unique: dict[tuple[str | None, ...], RecipeSource] = {}
    for recipe in recipes:
        for source in recipe.sources:
            unique[source.path, source.sha256, source.config_sha256] = source
    for source in unique.values():
        if source.path in names:
            continue
        yield _digest("source", source.path, partial(_weights, file, source), source.sha256)
        if source.config_sha256 is not None:
            name = f"config of {source.path}"
            yield _digest("source", name, partial(_config, file, source), source.config_sha256)


def _weights(file: Path, source: RecipeSource) -> Path:
    """Return the file of weights that a source of a recipe means."""
    path, _ = locate(located(source.path, file))
    return weights_file(path)


def _config(file: Path, source: RecipeSource) -> Path:
    """Return the file of the config that a source of a recipe means."""
    path, _ = locate(located(source.path, file))
    config = config_file(path)
    if config is None:
        raise GamMergeError(f"{path}: has no config any more")
    return config


def _digest(kind: Kind, name: str, find: Callable[[], Path], recorded: str | None) -> Check:
    """Check a file against the sha256 that was recorded of it."""
    if recorded is None:
        return Check(kind, name, "unknown", "no sha256 of it was recorded")
    try:
        digest = sha256(find())
    except GamMergeError as error:
        return Check(kind, name, "missing", str(error))
    if digest != recorded:
        note = f"its sha256 begins with {digest[:12]}, recorded was {recorded[:12]}"
        return Check(kind, name, "differs", note)
    return Check(kind, name, "holds")


def _metadata(weights: Path, recipes: Sequence[Recipe]) -> Check:
    """Check method and sources in the metadata of the weights against the recipe."""
    try:
        metadata = read_metadata(weights)
    except GamMergeError as error:
        return Check("record", _METADATA, "missing", str(error))
    if ORIGINS_KEY not in metadata:
        return Check("record", _METADATA, "unknown", "no sources were recorded there")
    try:
        sources = json.loads(metadata[ORIGINS_KEY])
    except (ValueError, RecursionError):
        sources = metadata[ORIGINS_KEY]
    recipe = {"method": recipes[-1].method, "sources": origins(list(map(_plain, recipes)))}
    return _agreement(_METADATA, recipe, {"method": metadata.get(METHOD_KEY), "sources": sources})


def _card(home: Path, recipes: Sequence[Recipe]) -> Check:
    """Check the recipe that the card repeats; paths apart, of which a card has the last part."""
    card = home / CARD_NAME
    try:
        text = _fenced(read_text(card))
        if text is None:
            return Check("record", CARD_NAME, "unknown", "the card does not contain a recipe")
        repeated = parse_recipes(text, card)
    except GamMergeError as error:
        return Check("record", CARD_NAME, "missing", str(error))
    return _agreement(CARD_NAME, _numbered(recipes), _numbered(repeated))


def _fenced(text: str) -> str | None:
    """Return the first block of YAML in a Markdown text, if one is opened and closed."""
    fence: str | None = None
    block: list[str] = []
    for line in text.split("\n"):
        if fence is None:
            opened = _FENCE.fullmatch(line)
            fence = opened[1] if opened else None
        elif line == fence:
            return "".join(block)
        else:
            block.append(f"{line}\n")
    return None


def _numbered(recipes: Iterable[Recipe]) -> dict[str, Any]:
    """Return the merges by position, without paths."""
    return {str(i): _without_paths(_plain(recipe)) for i, recipe in enumerate(recipes)}


def _plain(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(exclude_none=True)


def _without_paths(recipe: Mapping[str, Any]) -> dict[str, Any]:
    sources: list[dict[str, Any]] = []
    for source in recipe["sources"]:
        sources.append({key: value for key, value in source.items() if key != "path"})
    kept = {key: value for key, value in recipe.items() if key != "base_model"}
    return {**kept, "sources": sources}


def _agreement(name: str, recipe: Mapping[str, Any], record: Mapping[str, Any]) -> Check:
    """Check a record against the recipe, leaf by leaf."""
    expected, recorded = dict(_flat(recipe)), dict(_flat(record))
    for key in {**expected, **recorded}:
        if expected.get(key) != recorded.get(key):
            values = f"{recorded.get(key)!r} there and {expected.get(key)!r} in the recipe"
            return Check("record", name, "differs", f"{key} is {values}")
    return Check("record", name, "holds")


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of mappings and lists by their dotted keys."""
    if isinstance(value, Mapping):
        entries: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)
    else:
        yield key, value
        return
    for step, entry in entries:
        yield from _flat(entry, f"{key}.{step}" if key else str(step))


def _rerun(file: Path, recipe: Recipe, place: Place, device: str | torch.device) -> Check:
    """Check the weights that the recipe gives now against those that were written."""
    weights = place.weights.name
    name = f"{weights} once more"
    recorded = recipe.output.sha256 or {}
    with tempfile.TemporaryDirectory(prefix="gam-merge-") as folder:
        again = Path(folder, place.path.name)  # some formats write the name of the output
        try:
            merge_recipe(file, out=again, device=device)
        except GamMergeError as error:
            return Check("rerun", name, "differs", str(error))
        find = partial(place_of(again).file, weights)
        return _digest("rerun", name, find, recorded.get(weights))
