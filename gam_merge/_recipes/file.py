"""Recipes as a YAML file: one document a merge, read with the line of everything that is wrong.

A source may be another merge of the file by its name; the last document is the one that is written. Paths are relative
to the file.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from os.path import normpath
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
    """The merges of a file in an order in which each comes after those that it uses; the last one is to be written.

    overrides: settings over those of the file, such as ``params.density=0.2``, ``weights.a=0.3`` (of the source whose
    path ends in ``a``, or by position), ``name.output.rank=8`` (of the merge of that name; else of the last one). Paths
    of sources come back absolute, anchors as positions. Raises GamMergeError with line and key.
    """
    places = _places(read_text(file, piped=True), file)
    for setting in overrides:
        override(places, setting)
    recipes = [_validated(place) for place in places]
    names = _names(recipes, places)
    located = [
        _located(recipe, place, names) for recipe, place in zip(recipes, places, strict=True)
    ]
    return [(located[i], places[i]) for i in _order(located, places, names)]


def parse_recipes(text: str, file: Path) -> list[Recipe]:
    """The merges of a text, in its order, as they stand there: whether their sources exist is not asked. ``file`` is
    named in errors. Raises GamMergeError."""
    return [_validated(place) for place in _places(text, file)]


def _places(text: str, file: Path) -> list[Place]:
    places = [Place(file, document) for document in yaml.parse(text, str(file))]
    if not places:
        raise GamMergeError(f"{file}: holds no merge")
    return places


def _validated(place: Place) -> Recipe:
    data = place.document.data
    if not isinstance(data, dict):
        raise place.error((), f"a merge is a mapping of keys ({', '.join(Recipe.model_fields)})")
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
    """What pydantic found, in our words."""
    match error["type"]:
        case "extra_forbidden":
            models: dict[Any, type[BaseModel]] = {"sources": RecipeSource, "output": RecipeOutput}
            model = models.get(error["loc"][0], Recipe) if len(error["loc"]) > 1 else Recipe
            return f"is no key of a recipe here; there are: {', '.join(model.model_fields)}"
        case "missing":
            return "is missing"
        case "value_error":
            return str(error["ctx"]["error"])
        case _:
            return f"{error['input']!r} is not right: {error['msg'][0].lower()}{error['msg'][1:]}"


@contextmanager
def _at(place: Place, *keys: str | int) -> Iterator[None]:
    try:
        yield
    except GamMergeError as error:
        raise place.error(keys, error) from None


def _names(recipes: Sequence[Recipe], places: Sequence[Place]) -> dict[str, int]:
    """Name -> position in the file."""
    names: dict[str, int] = {}
    for i, (recipe, place) in enumerate(zip(recipes, places, strict=True)):
        if recipe.name in names:
            raise place.error(("name",), f"two merges are called {recipe.name!r}")
        if recipe.name is not None:
            names[recipe.name] = i
    return names


def _located(recipe: Recipe, place: Place, names: Mapping[str, int]) -> Recipe:
    """The recipe with absolute paths and the anchor as a position."""
    paths = [source.path for source in recipe.sources]
    anchor = recipe.anchor
    if isinstance(anchor, str) and anchor in paths:
        anchor = paths.index(anchor)
    if isinstance(anchor, str) or not 0 <= anchor < len(paths):
        raise place.error(
            ("anchor",),
            f"{anchor!r} is no source; give a position from 0 or a path as written here",
        )
    sources = []
    for i, source in enumerate(recipe.sources):
        local = beside(place.file, source.path)
        if source.path not in names and not is_there(local) and parse_hub_id(source.path) is None:
            raise place.error(
                ("sources", i, "path"), f"{local} does not exist, and no merge here has that name"
            )
        path = str(local) if source.path not in names and is_there(local) else source.path
        sources.append(source.model_copy(update={"path": path}))
    base = recipe.base_model
    if base is not None and (
        is_there(local := beside(place.file, base)) or parse_hub_id(base) is None
    ):
        base = str(local)
    return recipe.model_copy(update={"sources": sources, "anchor": anchor, "base_model": base})


def beside(file: Path, path: str) -> Path:
    """A path as it is meant in a file."""
    return Path(normpath(file.parent.absolute() / Path(path).expanduser()))


def _order(
    recipes: Sequence[Recipe], places: Sequence[Place], names: Mapping[str, int]
) -> list[int]:
    """Positions of the merges, those first that others use; the last of the file is the last."""
    uses = {
        i: [names[s.path] for s in recipe.sources if s.path in names]
        for i, recipe in enumerate(recipes)
    }
    try:
        order = list(TopologicalSorter(uses).static_order())
    except CycleError as error:
        cycle = error.args[1]
        text = (
            f"the merges use each other: {' -> '.join(str(recipes[i].name) for i in cycle[::-1])}"
        )
        raise places[cycle[0]].error(("sources",), text) from None
    used = {i for others in uses.values() for i in others}
    for i in range(len(recipes) - 1):
        if i not in used:
            raise places[i].error(
                (), "no other merge of the file uses this one, and only the last is written"
            )
    return order
