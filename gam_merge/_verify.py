"""``verify``: whether a merge on disk is still what was written, and its sources what it was made of.

The recipe is what all else is held against: it has the sha256 of the weights, of the config and of each source. The
card repeats it, and the metadata of the weights repeat method and sources. Nothing is signed: who may write all of
these files can make them agree.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import is_there, read_text, sha256
from gam_merge._load import locate, weights_file
from gam_merge._read.hub_id import parse_hub_id
from gam_merge._read.safetensors import read_header
from gam_merge._recipe import merge_recipe
from gam_merge._recipes.file import beside, parse_recipes
from gam_merge._recipes.recipe import OutputFile, Recipe, RecipeSource
from gam_merge._write.adapter import CARD_NAME, RECIPE_NAME
from gam_merge._write.provenance import METHOD_KEY, ORIGINS_KEY, origins

_FENCED = re.compile(r"^(`{3,})yaml\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
_WEIGHTS: OutputFile = "adapter_model.safetensors"
_METADATA = "metadata of the weights"


Kind = Literal["output", "record", "source", "rerun"]
State = Literal["holds", "differs", "missing", "unknown"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    ``kind``: a file of the output, a record that the recipe is compared with, a source, or the output of the same
    merge done again. It is "missing" if it cannot be read, "unknown" if nothing was recorded that it could differ from;
    ``note`` says more.
    """

    kind: Kind
    name: str
    state: State
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """What holds of a merge on disk."""

    path: Path
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """What differs or is missing."""
        return tuple(check for check in self.checks if check.state in ("differs", "missing"))

    @property
    def holds(self) -> bool:
        """Whether nothing differs and nothing is missing."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "path": str(self.path),
            "holds": self.holds,
            "checks": [asdict(check) for check in self.checks],
        }


def verify(
    path: str | PathLike[str],
    *,
    sources: bool = True,
    rerun: bool = False,
    device: str | torch.device = "auto",
) -> Verification:
    """Hold a merge against what its recipe records, and the records against each other.

    path: a directory that a merge wrote. sources: their weights are read too; those on the Hub are fetched at their
    commit unless they are in the cache. rerun: the merge is done again, in a temporary directory, and must give the
    same bytes: they depend on nothing but the sources, the versions of gam-merge and torch, and the kind of machine.

    Raises GamMergeError if there is no recipe that can be read.
    """
    home = Path(path)
    file = home / RECIPE_NAME
    recipes = parse_recipes(read_text(file), file)
    checks = [*_outputs(home, recipes[-1]), _metadata(home, recipes), _card(home, recipes)]
    if sources:
        checks += _sources(file, recipes)
    if rerun:
        checks.append(_rerun(file, recipes[-1], device))
    return Verification(home, tuple(checks))


def _outputs(home: Path, recipe: Recipe) -> Iterator[Check]:
    """The files of the output that the recipe has a sha256 of."""
    recorded = recipe.output.sha256 or {}
    files: tuple[OutputFile, ...] = get_args(OutputFile)
    for name in files:
        yield _digest("output", name, partial(Path, home, name), recorded.get(name))


def _sources(file: Path, recipes: Sequence[Recipe]) -> Iterator[Check]:
    """Every file that the merges of a recipe began with, once."""
    names = {recipe.name for recipe in recipes}
    found = {
        (source.path, source.sha256): source for recipe in recipes for source in recipe.sources
    }
    for source in found.values():
        if source.path not in names:
            yield _digest("source", source.path, partial(_weights, file, source), source.sha256)


def _weights(file: Path, source: RecipeSource) -> Path:
    """The file of weights that a source of a recipe means."""
    local = beside(file, source.path)
    return weights_file(
        locate(str(local) if is_there(local) or parse_hub_id(source.path) is None else source.path)[
            0
        ]
    )


def _digest(kind: Kind, name: str, find: Callable[[], Path], recorded: str | None) -> Check:
    """A file against the sha256 that was recorded of it."""
    if recorded is None:
        return Check(kind, name, "unknown", "no sha256 of it was recorded")
    try:
        found = sha256(find())
    except GamMergeError as error:
        return Check(kind, name, "missing", str(error))
    if found != recorded:
        return Check(
            kind,
            name,
            "differs",
            f"its sha256 begins with {found[:12]}, and did with {recorded[:12]}",
        )
    return Check(kind, name, "holds")


def _metadata(home: Path, recipes: Sequence[Recipe]) -> Check:
    """Method and sources as the weights have them against the recipe."""
    try:
        _, found = read_header(home / _WEIGHTS, any_dtype=True)
    except GamMergeError as error:
        return Check("record", _METADATA, "missing", str(error))
    if ORIGINS_KEY not in found:
        return Check("record", _METADATA, "unknown", "no sources were recorded there")
    try:
        said = json.loads(found[ORIGINS_KEY])
    except (ValueError, RecursionError):
        said = found[ORIGINS_KEY]
    recipe = {
        "method": recipes[-1].method,
        "sources": origins([_plain(recipe) for recipe in recipes]),
    }
    return _agreement(_METADATA, recipe, {"method": found.get(METHOD_KEY), "sources": said})


def _card(home: Path, recipes: Sequence[Recipe]) -> Check:
    """The recipe that the card repeats against the recipe; paths apart, of which a card has only the last part."""
    card = home / CARD_NAME
    try:
        fenced = _FENCED.search(read_text(card))
        if fenced is None:
            return Check("record", CARD_NAME, "unknown", "it has no recipe")
        repeated = parse_recipes(fenced[2], card)
    except GamMergeError as error:
        return Check("record", CARD_NAME, "missing", str(error))
    mine, theirs = (
        {f"{i}": _without_paths(_plain(r)) for i, r in enumerate(all)}
        for all in (recipes, repeated)
    )
    return _agreement(CARD_NAME, mine, theirs)


def _plain(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(exclude_none=True)


def _without_paths(recipe: Mapping[str, Any]) -> dict[str, Any]:
    sources = [
        {key: value for key, value in source.items() if key != "path"}
        for source in recipe["sources"]
    ]
    return {key: value for key, value in recipe.items() if key != "base_model"} | {
        "sources": sources
    }


def _agreement(name: str, recipe: Mapping[str, Any], other: Mapping[str, Any]) -> Check:
    mine, theirs = dict(_flat(recipe)), dict(_flat(other))
    for key in {**mine, **theirs}:
        if mine.get(key) != theirs.get(key):
            said = f"{key} is {theirs.get(key)!r} there and {mine.get(key)!r} in the recipe"
            return Check("record", name, "differs", said)
    return Check("record", name, "holds")


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of tables and lists by their dotted keys."""
    entries = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if entries is None:
        yield key, value
        return
    for step, entry in entries:
        yield from _flat(entry, f"{key}.{step}" if key else str(step))


def _rerun(file: Path, recipe: Recipe, device: str | torch.device) -> Check:
    """The weights that the recipe gives now against those that were written."""
    name = f"{_WEIGHTS} once more"
    with tempfile.TemporaryDirectory(prefix="gam-merge-") as folder:
        again = Path(folder, "again")
        try:
            merge_recipe(file, out=again, device=device)
        except GamMergeError as error:
            return Check("rerun", name, "differs", str(error))
        return _digest(
            "rerun",
            name,
            partial(Path, again, _WEIGHTS),
            (recipe.output.sha256 or {}).get(_WEIGHTS),
        )
