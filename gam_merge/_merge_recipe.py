"""A recipe -> the merge that it describes."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from gam_merge._adapter import Adapter
from gam_merge._digest import sha256
from gam_merge._engine import Progress
from gam_merge._errors import GamMergeError
from gam_merge._merge import MergeResult, merge
from gam_merge._override import Place
from gam_merge._recipe import Recipe
from gam_merge._recipe_file import read_recipes
from gam_merge._sources import load


def merge_recipe(
    recipe: str | PathLike[str],
    *,
    told: Sequence[str] = (),
    out: str | PathLike[str] | None = None,
    device: str | torch.device = "auto",
    force: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Do the merge of a recipe file; where it holds several, those that the last one uses are done in memory.

    told: settings over those of the file, ``key.key=value``, for instance ``params.density=0.2`` or ``weights.a=0.3``
    (of the source whose path ends in ``a``). The others are those of ``merge``.

    Raises GamMergeError, with the line for whatever the file says wrong, and then nothing is written.
    """
    *earlier, (last, place) = read_recipes(Path(recipe), told)
    made: dict[str, Adapter] = {}
    for step, where in earlier:
        result = merge(_sources(step, where, made), **_arguments(step), device=device, executor=executor)
        made[str(step.name)] = replace(result.adapter, source=str(step.name))
    sources = _sources(last, place, made)
    return merge(sources, **_arguments(last), out=out, device=device, force=force, executor=executor, progress=progress)


def _sources(recipe: Recipe, place: Place, made: dict[str, Adapter]) -> list[Adapter]:
    adapters: list[Adapter] = []
    for i, source in enumerate(recipe.sources):
        try:
            adapter = made.get(source.path) or load(source.path, base_model=source.base_model, alpha=source.alpha)
        except GamMergeError as error:
            raise place.error(("sources", i, "path"), error) from None
        if source.sha256 is not None and (adapter.file is None or sha256(adapter.file) != source.sha256):
            raise place.error(("sources", i, "sha256"), f"{adapter.file or source.path} is not what it was then")
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
        "rank": recipe.output.rank,
        "dtype": recipe.output.dtype,
    }
