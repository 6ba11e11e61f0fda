"""A recipe -> the merge that it describes."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import sha256
from gam_merge._common.types import Progress
from gam_merge._load import load
from gam_merge._merge import MergeResult, merge
from gam_merge._plan import MergePlan, plan
from gam_merge._read.adapter import Adapter
from gam_merge._recipes.file import read_recipes
from gam_merge._recipes.override import Place
from gam_merge._recipes.recipe import Recipe
from gam_merge._write.directory import check_output


def merge_recipe(
    recipe: str | PathLike[str],
    *,
    overrides: Sequence[str] = (),
    out: str | PathLike[str] | None = None,
    device: str | torch.device = "auto",
    force: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Do the merge of a recipe file; where it holds several, those that the last one uses are done in memory.

    overrides: settings over those of the file, ``key.key=value``, for instance ``params.density=0.2`` or
    ``weights.a=0.3`` (of the source whose path ends in ``a``). The others are those of ``merge``.

    Raises GamMergeError, with the line for whatever the file says wrong, and then nothing is written.
    """

    def in_memory(sources: list[Adapter], arguments: dict[str, Any]) -> Adapter:
        return merge(sources, **arguments, device=device, executor=executor).adapter

    if out is not None:
        check_output(Path(out), force=force)  # before the work on merges that it uses
    sources, last = _prepare(Path(recipe), overrides, in_memory)
    return merge(
        sources, **last, out=out, device=device, force=force, executor=executor, progress=progress
    )


def plan_recipe(
    recipe: str | PathLike[str],
    *,
    overrides: Sequence[str] = (),
    out: str | PathLike[str] | None = None,
    device: str | torch.device = "auto",
    force: bool = False,
) -> MergePlan:
    """What ``merge_recipe`` would do with the same arguments: the plan of the merge that it writes, from headers alone.

    Raises GamMergeError wherever ``merge_recipe`` would before it reads the first tensor.
    """

    def promised(sources: list[Adapter], arguments: dict[str, Any]) -> Adapter:
        return plan(sources, **arguments, device=device).lineup.promised()

    sources, last = _prepare(Path(recipe), overrides, promised)
    return plan(sources, **last, out=out, device=device, force=force)


def recipe_settings(recipe: str | PathLike[str]) -> dict[str, Any]:
    """The arguments of ``merge`` that a recipe decides, for sources other than its own. Raises GamMergeError."""
    *_, (last, _) = read_recipes(Path(recipe), ())
    return _arguments(last)


def _prepare(
    file: Path, overrides: Sequence[str], make: Callable[[list[Adapter], dict[str, Any]], Adapter]
) -> tuple[list[Adapter], dict[str, Any]]:
    """Sources and arguments of the merge that is to be written, after ``make`` of those that it uses."""
    *earlier, (last, place) = read_recipes(file, overrides)
    made: dict[str, Adapter] = {}
    for recipe, where in earlier:
        name = str(recipe.name)
        made[name] = replace(make(_sources(recipe, where, made), _arguments(recipe)), source=name)
    return _sources(last, place, made), _arguments(last)


def _sources(recipe: Recipe, place: Place, made: dict[str, Adapter]) -> list[Adapter]:
    adapters: list[Adapter] = []
    for i, source in enumerate(recipe.sources):
        try:
            adapter = made.get(source.path) or load(
                source.path, base_model=source.base_model, alpha=source.alpha
            )
        except GamMergeError as error:
            raise place.error(("sources", i, "path"), error) from None
        if source.sha256 is not None and (
            adapter.file is None or sha256(adapter.file) != source.sha256
        ):
            raise place.error(
                ("sources", i, "sha256"), f"{adapter.file or source.path} is not what it was then"
            )
        adapters.append(adapter)
    return adapters


def _arguments(recipe: Recipe) -> dict[str, Any]:
    """Those of ``merge`` that a recipe decides."""
    return {
        "method": recipe.method,
        "params": recipe.params,
        "weights": [source.weight for source in recipe.sources],
        "anchor": recipe.anchor,
        "missing": recipe.missing,
        "allow_base_mismatch": recipe.allow_base_mismatch,
        "base_model": recipe.base_model,
        **recipe.output.settings,
    }
