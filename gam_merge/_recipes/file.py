"""Recipes as a YAML file: one document per merge, read with the line of everything that is wrong.

A source may be another merge of the file by its name; the last document is the one that is written.
Paths are relative to the file.
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
    """Return the merges of a file, each after those that it uses; the last is to be written.

    overrides: settings over those of the file, such as ``params.density=0.2``, ``weights.a=0.3``
    (of the source whose path ends in ``a``, or by position), ``name.output.rank=8`` (of the merge
    of that name; else of the last one).

    Paths of sources come back absolute, anchors as positions. Raises GamMergeError with line and
    key.
    """
    places = _places(read_text(file, piped=True), file)
    for setting in overrides:
        override(places, setting)
    recipes = [_validated(place) for place in places]
    names = _names(recipes, places)
    located: list[Recipe] = []
    for recipe, place in zip(recipes, places, strict=True):
        located.append(_located(recipe, place, names))
    return [(located[i], places[i]) for i in _order(located, places, names)]


def parse_recipes(text: str, file: Path) -> list[Recipe]:
    """Return the merges of a text, in its order, as they stand there.

    Sources need not exist. file: what errors name. Raises GamMergeError.
    """
    return [_validated(place) for place in _places(text, file)]


def _places(text: str, file: Path) -> list[Place]:
    places = [Place(file, document) for document in yaml.parse(text, str(file))]
    if not places:
        raise GamMergeError(f"{file}: holds no merge")
    return places


def _validated(place: Place) -> Recipe:
    data = place.document.data
    if not isinstance(data, dict):
        raise place.error((), f"a merge must be a mapping of {', '.join(Recipe.model_fields)}")
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
    """Return an error of pydantic in our words."""
    match error["type"]:
        case "extra_forbidden":
            fields = ", ".join(_model_at(error["loc"]).model_fields)
            return f"unknown key {error['loc'][-1]!r}; expected one of {fields}"
        case "missing":
            return "is missing"
        case "value_error":
            return str(error["ctx"]["error"])
        case _:
            _, _, demand = error["msg"].partition(" should ")  # "Input should be a valid string"
            return f"must {demand or error['msg']}, got {error['input']!r}"


def _model_at(place: Sequence[str | int]) -> type[BaseModel]:
    """Return the part of a recipe in which a place lies."""
    if len(place) > 1 and place[0] == "sources":
        return RecipeSource
    if len(place) > 1 and place[0] == "output":
        return RecipeOutput
    return Recipe


@contextmanager
def _at(place: Place, *keys: str | int) -> Iterator[None]:
    """Name the place in errors of a block."""
    try:
        yield
    except GamMergeError as error:
        raise place.error(keys, error) from None


def _names(recipes: Sequence[Recipe], places: Sequence[Place]) -> dict[str, int]:
    """Return the position in the file of each merge that has a name."""
    names: dict[str, int] = {}
    for i, (recipe, place) in enumerate(zip(recipes, places, strict=True)):
        if recipe.name in names:
            raise place.error(("name",), f"two merges are called {recipe.name!r}")
        if recipe.name is not None:
            names[recipe.name] = i
    return names


def _located(recipe: Recipe, place: Place, names: Mapping[str, int]) -> Recipe:
    """Return the recipe with absolute paths and the anchor as a position."""
    paths = [source.path for source in recipe.sources]
    anchor = recipe.anchor
    if isinstance(anchor, str) and anchor in paths:
        anchor = paths.index(anchor)
    if isinstance(anchor, str) or not 0 <= anchor < len(paths):
        text = f"must be a position from 0 or a path as written here, got {anchor!r}"
        raise place.error(("anchor",), text)
    sources: list[RecipeSource] = []
    for i, source in enumerate(recipe.sources):
        path = source.path
        local = next_to(place.file, path)
        if path not in names and is_there(local):
            path = str(local)
        elif path not in names and parse_hub_id(path) is None:
            text = f"{local} does not exist, and no merge here has that name"
            raise place.error(("sources", i, "path"), text)
        sources.append(source.model_copy(update={"path": path}))
    base = recipe.base_model
    if base is not None:
        base = located(base, place.file)
    return recipe.model_copy(update={"sources": sources, "anchor": anchor, "base_model": base})


def located(path: str, file: Path) -> str:
    """Return a path of a recipe from here if it is local, a Hub id as it is written."""
    local = next_to(file, path)
    return str(local) if is_there(local) or parse_hub_id(path) is None else path


def next_to(file: Path, path: str) -> Path:
    """Return a path as it is meant in a file: relative to its folder."""
    return Path(normpath(file.parent.absolute() / expanduser(path)))


def _order(
    recipes: Sequence[Recipe], places: Sequence[Place], names: Mapping[str, int]
) -> list[int]:
    """Return the positions of the merges, each after those that it uses; the last stays last."""
    uses: dict[int, list[int]] = {}
    for i, recipe in enumerate(recipes):
        uses[i] = [names[source.path] for source in recipe.sources if source.path in names]
    try:
        order = list(TopologicalSorter(uses).static_order())
    except CycleError as error:
        cycle = error.args[1]
        chain = " -> ".join(str(recipes[i].name) for i in reversed(cycle))
        raise places[cycle[0]].error(("sources",), f"the merges use each other: {chain}") from None
    used = set().union(*uses.values())
    for i in range(len(recipes) - 1):
        if i not in used:
            text = "no other merge of the file uses this one, and only the last is written"
            raise places[i].error((), text)
    return order
