"""Recipes as a YAML file: one document per merge; every error names its line.

A source may be another merge of the file, by its name; the last document is the one that is
written. Paths are relative to the file.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from os.path import expanduser, normpath
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from gam_merge._common import yaml
from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import is_there, read_text
from gam_merge._common.tensors import parse_dtype
from gam_merge._lineup.settings import values
from gam_merge._methods import get_method
from gam_merge._read.hub_id import parse_hub_id
from gam_merge._recipes.override import Place, override
from gam_merge._recipes.recipe import Recipe, RecipeOutput, RecipeSource


def read_recipes(file: Path, overrides: Sequence[str] = ()) -> list[tuple[Recipe, Place]]:
    """Read the merges of a file, each after those that it uses; the last one is to be written.

    overrides: settings that replace those of the file, such as ``params.density=0.2``,
    ``weights.a=0.3`` (of the source whose path ends in ``a``, or by position) or
    ``name.output.rank=8`` (of the merge with that name; otherwise of the last one).

    Paths of sources come back absolute, anchors as positions. Raises GamMergeError with line and
    key.
    """
    places = _places(read_text(file, piped=True), file)
    for setting in overrides:
        override(places, setting)
    recipes = [_validated(place) for place in places]
    names = _names(recipes, places)
    located = []
    for recipe, place in zip(recipes, places, strict=True):
        located.append(_located(recipe, place, names))
    return [(located[i], places[i]) for i in _order(located, places, names)]


def parse_recipes(text: str, file: Path) -> list[Recipe]:
    """Parse the merges of a text, in its order, without looking for their sources.

    Errors name ``file``. Raises GamMergeError.
    """
    return [_validated(place) for place in _places(text, file)]


def _places(text: str, file: Path) -> list[Place]:
    places = [Place(file, document) for document in yaml.parse(text, str(file))]
    if not places:
        raise GamMergeError(f"{file}: contains no merge")
    return places


def _validated(place: Place) -> Recipe:
    """Return the recipe of a document. Raises GamMergeError for a key or value that is invalid."""
    data = place.document.data
    if not isinstance(data, dict):
        keys = ", ".join(Recipe.model_fields)
        raise place.error((), f"a merge must be a mapping; its keys are {keys}")
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise place.error(first["loc"], _reason(first)) from None
    with _at(place, "method"):
        method = get_method(recipe.method)
    for name, setting in recipe.params.items():
        with _at(place, "params", name):
            for value in values(setting):
                method.validate({name: value})
    with _at(place, "output", "dtype"):
        parse_dtype(recipe.output.dtype)
    return recipe


def _reason(error: Any) -> str:
    """Explain an error of pydantic in the words of this library."""
    match error["type"]:
        case "extra_forbidden":
            keys = ", ".join(_model_at(error["loc"]).model_fields)
            return f"unknown key {error['loc'][-1]!r}; expected one of {keys}"
        case "missing":
            return "is missing"
        case "value_error":
            return str(error["ctx"]["error"])
        case _:
            return f"invalid value {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _model_at(place: Sequence[str | int]) -> type[BaseModel]:
    """Return the model that a key belongs to."""
    models: dict[str | int, type[BaseModel]] = {"sources": RecipeSource, "output": RecipeOutput}
    return models.get(place[0], Recipe) if len(place) > 1 else Recipe


@contextmanager
def _at(place: Place, *keys: str | int) -> Iterator[None]:
    """Add line and key to a GamMergeError of the block."""
    try:
        yield
    except GamMergeError as error:
        raise place.error(keys, error) from None


def _names(recipes: Sequence[Recipe], places: Sequence[Place]) -> dict[str, int]:
    """Map the name of each merge to its position in the file."""
    names: dict[str, int] = {}
    for i, (recipe, place) in enumerate(zip(recipes, places, strict=True)):
        if recipe.name in names:
            raise place.error(("name",), f"two merges are called {recipe.name!r}")
        if recipe.name is not None:
            names[recipe.name] = i
    return names


def _located(recipe: Recipe, place: Place, names: Mapping[str, int]) -> Recipe:
    """Return the recipe with absolute paths and the anchor as a position."""
    anchor, sources = _anchor_position(recipe, place), []
    for i, source in enumerate(recipe.sources):
        path = source.path
        if path not in names:
            local = resolve(place.file, path)
            if is_there(local):
                path = str(local)
            elif parse_hub_id(path) is None:
                raise place.error(
                    ("sources", i, "path"),
                    f"{local} does not exist, and no merge in this file has that name",
                )
        sources.append(source.model_copy(update={"path": path}))
    base = _located_base(recipe, place)
    return recipe.model_copy(update={"sources": sources, "anchor": anchor, "base_model": base})


def _anchor_position(recipe: Recipe, place: Place) -> int:
    anchor, paths = recipe.anchor, [source.path for source in recipe.sources]
    if isinstance(anchor, str) and anchor in paths:
        return paths.index(anchor)
    if isinstance(anchor, str) or not 0 <= anchor < len(paths):
        raise place.error(
            ("anchor",),
            f"must be a position from 0 to {len(paths) - 1} or the path of a source "
            f"as written here, got {anchor!r}",
        )
    return anchor


def _located_base(recipe: Recipe, place: Place) -> str | None:
    base = recipe.base_model
    if base is None:
        return None
    local = resolve(place.file, base)
    return str(local) if is_there(local) or parse_hub_id(base) is None else base


def resolve(file: Path, path: str) -> Path:
    """Return the absolute path that ``path`` means in a file."""
    return Path(normpath(file.parent.absolute() / expanduser(path)))


def _order(
    recipes: Sequence[Recipe], places: Sequence[Place], names: Mapping[str, int]
) -> list[int]:
    """Sort positions of merges so that each comes after those that it uses; the last stays last."""
    uses: dict[int, list[int]] = {}
    for i, recipe in enumerate(recipes):
        uses[i] = [names[source.path] for source in recipe.sources if source.path in names]
    try:
        order = list(TopologicalSorter(uses).static_order())
    except CycleError as error:
        cycle = error.args[1]
        merges = " -> ".join(str(recipes[i].name) for i in cycle[::-1])
        raise places[cycle[0]].error(("sources",), f"the merges use each other: {merges}") from None
    used = set[int]().union(*uses.values())
    for i, place in enumerate(places[:-1]):
        if i not in used:
            raise place.error(
                (), "no other merge in this file uses this one, and only the last one is written"
            )
    return order
