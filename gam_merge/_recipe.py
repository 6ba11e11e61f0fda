"""Merges that recipe files describe."""

from collections.abc import Callable, Mapping, Sequence
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
from gam_merge._merge import MergeResult, merge, promised_adapter
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
    """Run the merge of a recipe file.

    If the file has several merges, those that the last one uses are done in memory.

    Example:
        >>> adapters = ["examples/adapters/addition", "examples/adapters/sorting"]
        >>> result = gm.merge(adapters, method="mean", out="merged")
        >>> again = gm.merge_recipe("merged/gam_merge_recipe.yaml", overrides=["output.rank=4"])
        >>> again.report.method, again.report.rank
        ('mean', 4)

    Args:
        recipe: the file. Every merge writes one, ``gam_merge_recipe.yaml``; ``recipe_schema``
            describes its keys.
        overrides: settings ``key.key=value`` that replace those of the file, for instance
            ``params.density=0.2``, or ``weights.a=0.3`` for the source whose path ends in ``a``.
        out: the directory to write; without it, the result stays in memory.
        device: where to compute: "auto", "cpu", "cuda", ...
        force: replace ``out`` if it is empty or an output of gam-merge.
        executor: runs parts of the merge, by default on threads of this process.
        progress: called with the number of modules done and their total number.

    Returns:
        The result, as ``merge`` returns it.

    Raises:
        GamMergeError: with the line of the fault in the file; then nothing is written.
    """

    def in_memory(sources: list[Adapter], arguments: dict[str, Any]) -> Adapter:
        return merge(sources, **arguments, device=device, executor=executor).adapter

    if out is not None:
        check_output(Path(out), force=force)  # before the merges that the last one uses
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
    """Plan the merge of a recipe file from headers alone: what ``merge_recipe`` would do.

    Example:
        >>> result = gm.merge(["examples/adapters/addition"], out="merged")
        >>> planned = gm.plan_recipe("merged/gam_merge_recipe.yaml", overrides=["output.rank=4"])
        >>> planned.to_dict()["rank"]
        4

    Args:
        recipe: the file.
        overrides: settings that replace those of the file.
        out: the directory that would be written.
        device: where the merge would compute.
        force: whether an existing ``out`` would be replaced.

    Returns:
        The plan of the merge that is written, the last one of the file.

    Raises:
        GamMergeError: wherever ``merge_recipe`` would raise it before it reads the first tensor.
    """

    def promised(sources: list[Adapter], arguments: dict[str, Any]) -> Adapter:
        return promised_adapter(plan(sources, **arguments, device=device).plan)

    sources, last = _prepare(Path(recipe), overrides, promised)
    return plan(sources, **last, out=out, device=device, force=force)


def recipe_settings(recipe: str | PathLike[str]) -> dict[str, Any]:
    """Return the arguments of ``merge`` that a recipe decides, for use with other sources.

    Raises GamMergeError.
    """
    last, _ = read_recipes(Path(recipe))[-1]
    return _arguments(last)


def _prepare(
    file: Path, overrides: Sequence[str], make: Callable[[list[Adapter], dict[str, Any]], Adapter]
) -> tuple[list[Adapter], dict[str, Any]]:
    """Return sources and arguments of the last merge, after ``make`` made those that it uses."""
    *earlier, (last, place) = read_recipes(file, overrides)
    merged: dict[str, Adapter] = {}
    for recipe, position in earlier:
        name = str(recipe.name)
        adapter = make(_sources(recipe, position, merged), _arguments(recipe))
        merged[name] = replace(adapter, source=name)
    return _sources(last, place, merged), _arguments(last)


def _sources(recipe: Recipe, place: Place, merged: Mapping[str, Adapter]) -> list[Adapter]:
    """Return the adapters of a recipe, out of files or of the merges before it."""
    adapters: list[Adapter] = []
    for i, source in enumerate(recipe.sources):
        try:
            adapter = merged.get(source.path) or load(
                source.path, base_model=source.base_model, alpha=source.alpha
            )
        except GamMergeError as error:
            raise place.error(("sources", i, "path"), error) from None
        if source.sha256 is not None:
            digest = sha256(adapter.file) if adapter.file else None
            if digest != source.sha256:
                raise place.error(
                    ("sources", i, "sha256"),
                    f"{adapter.file or source.path} does not match this sha256",
                )
        adapters.append(adapter)
    return adapters


def _arguments(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of ``merge`` that a recipe decides."""
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
