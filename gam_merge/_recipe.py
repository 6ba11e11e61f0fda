"""``merge_recipe`` and ``plan_recipe``: the merge that a recipe file describes."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from os import PathLike
from pathlib import Path

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import sha256
from gam_merge._common.types import Progress
from gam_merge._lineup.options import MergeOptions
from gam_merge._load import load
from gam_merge._merge import MergeResult, merge
from gam_merge._plan import MergePlan, plan
from gam_merge._read.adapter import Adapter
from gam_merge._recipes.file import read_recipes
from gam_merge._recipes.override import Place
from gam_merge._recipes.recipe import Recipe, RecipeSource
from gam_merge._write.output import check_output

_Make = Callable[[list[Adapter], MergeOptions], Adapter]  # a merge that another one uses


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
    """Do the merge of a recipe file.

    Earlier merges of the file that the last one uses are kept in memory.

    Args:
        recipe: a YAML file.
        overrides: settings over those of the file, ``key.key=value``, for instance
            ``params.density=0.2`` or ``weights.a=0.3`` (of the source whose path ends in ``a``).
        out: the directory to write; without it the result stays in memory until ``save``.
        device: ``"auto"`` takes a GPU if there is one.
        force: replace an ``out`` that is empty or an earlier merge.
        executor: any ``concurrent.futures.Executor``; threads of this process by default.
        progress: called with (modules done, modules in all).

    Returns:
        MergeResult: the adapter (in memory, or on disk with ``out``), the report, the record.

    Raises:
        GamMergeError: with the line of the file that is wrong; and then nothing is written.

    Example:
        >>> from pathlib import Path
        >>> first, second = "examples/adapters/addition", "examples/adapters/sorting"
        >>> text = f"sources: [{{path: {first}}}, {{path: {second}}}]"
        >>> _ = Path("merge.yaml").write_text(text)
        >>> result = gm.merge_recipe("merge.yaml", overrides=["method=mean", "output.rank=8"])
        >>> result.report.method, result.report.rank
        ('mean', 8)
    """

    def in_memory(sources: list[Adapter], options: MergeOptions) -> Adapter:
        return merge(sources, executor=executor, **options).adapter

    if out is not None:
        check_output(Path(out), force=force)  # before the work on merges that it uses
    sources, options = _prepare(Path(recipe), overrides, device, in_memory)
    return merge(sources, out=out, force=force, executor=executor, progress=progress, **options)


def plan_recipe(
    recipe: str | PathLike[str],
    *,
    overrides: Sequence[str] = (),
    out: str | PathLike[str] | None = None,
    device: str | torch.device = "auto",
    force: bool = False,
) -> MergePlan:
    """Say what ``merge_recipe`` would do with the same arguments, from headers alone.

    Args:
        recipe: a YAML file.
        overrides: settings over those of the file, ``key.key=value``.
        out: the directory that would be written.
        device: ``"auto"`` takes a GPU if there is one.
        force: check ``out`` as ``merge_recipe(force=True)`` would.

    Returns:
        MergePlan: of the merge that would be written.

    Raises:
        GamMergeError: wherever ``merge_recipe`` would before it reads the first tensor.

    Example:
        >>> from pathlib import Path
        >>> first, second = "examples/adapters/addition", "examples/adapters/sorting"
        >>> text = f"sources: [{{path: {first}}}, {{path: {second}}}]"
        >>> _ = Path("merge.yaml").write_text(text)
        >>> gm.plan_recipe("merge.yaml", overrides=["method=mean"]).rank
        8
    """

    def promised(sources: list[Adapter], options: MergeOptions) -> Adapter:
        return plan(sources, **options).lineup.promised()

    sources, options = _prepare(Path(recipe), overrides, device, promised)
    return plan(sources, out=out, force=force, **options)


def recipe_settings(recipe: str | PathLike[str]) -> MergeOptions:
    """Return the options that a recipe decides, for sources other than its own.

    Raises GamMergeError.
    """
    *_, (last, _) = read_recipes(Path(recipe), ())
    return _options(last)


def _prepare(
    file: Path, overrides: Sequence[str], device: str | torch.device, make: _Make
) -> tuple[list[Adapter], MergeOptions]:
    """Return sources and options of the merge to be written, after those that it uses are made."""
    *earlier, (last, last_place) = read_recipes(file, overrides)
    made: dict[str, Adapter] = {}
    for recipe, place in earlier:
        name = str(recipe.name)
        options: MergeOptions = {**_options(recipe), "device": device}
        made[name] = replace(make(_sources(recipe, place, made), options), source=name)
    return _sources(last, last_place, made), {**_options(last), "device": device}


def _sources(recipe: Recipe, place: Place, made: dict[str, Adapter]) -> list[Adapter]:
    adapters: list[Adapter] = []
    for i, source in enumerate(recipe.sources):
        try:
            adapter = made.get(source.path) or _loaded(source)
        except GamMergeError as error:
            raise place.error(("sources", i, "path"), error) from None
        adapters.append(adapter)
        pinned = (
            ("sha256", source.sha256, adapter.file),
            ("config_sha256", source.config_sha256, adapter.config_file),
        )
        for key, recorded, file in pinned:
            if recorded is not None and (file is None or sha256(file) != recorded):
                text = f"{file or source.path} has changed since its sha256 was recorded"
                raise place.error(("sources", i, key), text)
    return adapters


def _loaded(source: RecipeSource) -> Adapter:
    return load(source.path, base_model=source.base_model, alpha=source.alpha)


def _options(recipe: Recipe) -> MergeOptions:
    """Return the options of ``merge`` that a recipe decides."""
    output = recipe.output
    return {
        "method": recipe.method,
        "params": recipe.params,
        "weights": [source.weight for source in recipe.sources],
        "anchor": recipe.anchor,
        "missing": recipe.missing,
        "allow_base_mismatch": recipe.allow_base_mismatch,
        "base_model": recipe.base_model,
        "rank": output.rank,
        "energy": output.energy,
        "max_rank": output.max_rank,
        "per_module_rank": output.per_module_rank,
        "flatten_dora": output.flatten_dora,
        "format": output.format,
        "dtype": output.dtype,
    }
