"""``verify``: whether a merge on disk, and its sources, are still what was recorded.

Everything is compared with the recipe, which has the SHA-256 of the weights, of the config and of
each source. The card repeats the recipe; the metadata of the weights repeat method and sources.
Nothing is signed: whoever may write all of these files can make them agree.
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
from gam_merge._recipes.file import parse_recipes, resolve
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
    """One comparison with the recipe.

    Its ``kind`` says with what: a file of the output, another record, a source, or the output of
    a rerun. It is "missing" if that cannot be read, and "unknown" if nothing was recorded to
    compare it with. The ``note`` has details.

    Example:
        >>> result = gm.merge(["examples/adapters/addition"], out="merged")
        >>> gm.verify("merged").checks[0]
        Check(kind='output', name='adapter_model.safetensors', state='holds', note='')
    """

    kind: Kind
    name: str
    state: State
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """The result of ``verify``.

    Example:
        >>> result = gm.merge(["examples/adapters/addition"], out="merged")
        >>> (result.path / "adapter_config.json").unlink()
        >>> found = gm.verify("merged")
        >>> found.holds
        False
        >>> [(check.name, check.state) for check in found.failed]
        [('adapter_config.json', 'missing')]
    """

    path: Path
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks whose state is "differs" or "missing"."""
        return tuple(check for check in self.checks if check.state in ("differs", "missing"))

    @property
    def holds(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
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
    """Check a merge and its sources against the recorded hashes, and the records among themselves.

    Example:
        >>> adapters = ["examples/adapters/addition", "examples/adapters/sorting"]
        >>> result = gm.merge(adapters, out="merged")
        >>> gm.verify("merged", rerun=True).holds
        True

    Args:
        path: the directory of a merge.
        sources: read the weights of the sources, too. Sources on the Hub are downloaded at their
            commit unless they are in the cache.
        rerun: do the merge again, in a temporary directory, and require the same bytes. They depend
            on the sources, the versions of gam-merge and torch, and the kind of machine, and on
            nothing else.
        device: where the rerun computes: "auto", "cpu", "cuda", ...

    Returns:
        The checks, and whether all of them hold.

    Raises:
        GamMergeError: if there is no readable recipe.
    """
    folder = Path(path)
    file = folder / RECIPE_NAME
    recipes = parse_recipes(read_text(file), file)
    checks = [*_outputs(folder, recipes[-1]), _metadata(folder, recipes), _card(folder, recipes)]
    if sources:
        checks += _sources(file, recipes)
    if rerun:
        checks.append(_rerun(file, recipes[-1], device))
    return Verification(folder, tuple(checks))


def _outputs(folder: Path, recipe: Recipe) -> Iterator[Check]:
    """Check the files of the output."""
    recorded = recipe.output.sha256 or {}
    files: tuple[OutputFile, ...] = get_args(OutputFile)
    for name in files:
        yield _digest("output", name, partial(Path, folder, name), recorded.get(name))


def _sources(file: Path, recipes: Sequence[Recipe]) -> Iterator[Check]:
    """Check every file that the merges of a recipe read, once."""
    merges = {recipe.name for recipe in recipes}
    sources: dict[tuple[str, str | None], RecipeSource] = {}
    for recipe in recipes:
        for source in recipe.sources:
            sources[source.path, source.sha256] = source
    for source in sources.values():
        if source.path not in merges:
            yield _digest("source", source.path, partial(_weights, file, source), source.sha256)


def _weights(file: Path, source: RecipeSource) -> Path:
    """Return the file of weights that a source of a recipe means."""
    path = source.path
    local = resolve(file, path)
    if is_there(local) or parse_hub_id(path) is None:
        path = str(local)
    located, _ = locate(path)
    return weights_file(located)


def _digest(kind: Kind, name: str, find: Callable[[], Path], recorded: str | None) -> Check:
    """Compare the SHA-256 of a file with the recorded one."""
    if recorded is None:
        return Check(kind, name, "unknown", "no sha256 was recorded for it")
    try:
        digest = sha256(find())
    except GamMergeError as error:
        return Check(kind, name, "missing", str(error))
    if digest != recorded:
        note = f"its sha256 begins with {digest[:12]}, the recorded one with {recorded[:12]}"
        return Check(kind, name, "differs", note)
    return Check(kind, name, "holds")


def _metadata(folder: Path, recipes: Sequence[Recipe]) -> Check:
    """Compare method and sources in the metadata of the weights with the recipe."""
    try:
        _, metadata = read_header(folder / _WEIGHTS, any_dtype=True)
    except GamMergeError as error:
        return Check("record", _METADATA, "missing", str(error))
    if ORIGINS_KEY not in metadata:
        return Check("record", _METADATA, "unknown", "no sources are recorded in it")
    try:
        sources = json.loads(metadata[ORIGINS_KEY])
    except (ValueError, RecursionError):
        sources = metadata[ORIGINS_KEY]
    expected = {
        "method": recipes[-1].method,
        "sources": origins([_plain(recipe) for recipe in recipes]),
    }
    record = {"method": metadata.get(METHOD_KEY), "sources": sources}
    return _agreement(_METADATA, expected, record)


def _card(folder: Path, recipes: Sequence[Recipe]) -> Check:
    """Compare the recipe in the card with the recipe, except for paths.

    A card has only the last part of a path.
    """
    card = folder / CARD_NAME
    try:
        fenced = _FENCED.search(read_text(card))
        if fenced is None:
            return Check("record", CARD_NAME, "unknown", "it contains no recipe")
        repeated = parse_recipes(fenced[2], card)
    except GamMergeError as error:
        return Check("record", CARD_NAME, "missing", str(error))
    return _agreement(CARD_NAME, _numbered(recipes), _numbered(repeated))


def _numbered(recipes: Sequence[Recipe]) -> dict[str, Any]:
    """Return the merges without paths, by position."""
    return {str(i): _without_paths(_plain(recipe)) for i, recipe in enumerate(recipes)}


def _plain(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(exclude_none=True)


def _without_paths(recipe: dict[str, Any]) -> dict[str, Any]:
    """Remove the paths of the sources and of the base model."""
    recipe.pop("base_model", None)
    for source in recipe["sources"]:
        del source["path"]
    return recipe


def _agreement(name: str, recipe: Mapping[str, Any], record: Mapping[str, Any]) -> Check:
    """Compare another record with the recipe."""
    expected, recorded = dict(_flat(recipe)), dict(_flat(record))
    for key in {**expected, **recorded}:
        if expected.get(key) != recorded.get(key):
            note = f"{key} is {recorded.get(key)!r} here and {expected.get(key)!r} in the recipe"
            return Check("record", name, "differs", note)
    return Check("record", name, "holds")


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of mappings and lists by their dotted keys."""
    if isinstance(value, Mapping):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    else:
        yield key, value
        return
    for step, entry in entries:
        yield from _flat(entry, f"{key}.{step}" if key else str(step))


def _rerun(file: Path, recipe: Recipe, device: str | torch.device) -> Check:
    """Compare the weights that the recipe gives now with the recorded SHA-256."""
    name = f"{_WEIGHTS} of the rerun"
    with tempfile.TemporaryDirectory(prefix="gam-merge-") as temporary:
        out = Path(temporary, "rerun")
        try:
            merge_recipe(file, out=out, device=device)
        except GamMergeError as error:
            return Check("rerun", name, "differs", str(error))
        recorded = (recipe.output.sha256 or {}).get(_WEIGHTS)
        return _digest("rerun", name, partial(Path, out, _WEIGHTS), recorded)
