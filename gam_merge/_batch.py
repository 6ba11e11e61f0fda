"""Merges many recipes; one that fails does not stop the others."""

import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._common.types import Progress
from gam_merge._recipe import merge_recipe
from gam_merge._run.report import MergeReport
from gam_merge._write.adapter import RECIPE_NAME


@dataclass(frozen=True)
class BatchItem:
    """The outcome of one recipe: a report, or an error.

    Example:
        >>> result = gm.merge(["examples/adapters/addition"], out="merged")
        >>> (item,) = gm.batch(["merged/gam_merge_recipe.yaml"], "runs")
        >>> item.error is None, item.report.rank
        (True, 8)
    """

    recipe: Path
    out: Path
    seconds: float
    report: MergeReport | None = None
    error: str | None = None


def batch(
    recipes: Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    overrides: Sequence[str] = (),
    device: str | torch.device = "auto",
    force: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> tuple[BatchItem, ...]:
    """Run the merges of many recipe files.

    Each is written to a directory in ``out`` that has the name of its file, or of its folder if it
    is a ``gam_merge_recipe.yaml``.

    Example:
        >>> result = gm.merge(["examples/adapters/addition"], out="merged")
        >>> items = gm.batch(["merged/gam_merge_recipe.yaml"], "runs", overrides=["output.rank=4"])
        >>> [(str(item.out), item.report.rank) for item in items]
        [('runs/merged', 4)]

    Args:
        recipes: recipe files; see ``merge_recipe``.
        out: the directory for the outputs.
        overrides: settings that replace those of every recipe; see ``merge_recipe``.
        device: where the merges compute: "auto", "cpu", "cuda", ...
        force: replace outputs that exist, if they are empty or outputs of gam-merge.
        executor: runs the merges. By default they run one by one in this process, because each of
            them uses all cores.
        progress: called with the number of recipes done and their total number.

    Returns:
        One item per recipe, in their order, with a report or an error.

    Raises:
        GamMergeError: if there are no recipes, or two would be written to the same directory.
    """
    files = [Path(recipe) for recipe in recipes]
    if not files:
        raise GamMergeError("give at least one recipe")
    outs = [Path(out) / _name(file) for file in files]
    for i, path in enumerate(outs):
        if path in outs[:i]:
            raise GamMergeError(
                f"{files[outs.index(path)]} and {files[i]} would both be written to {path}; "
                "rename one"
            )
    pool = executor or ThreadPoolExecutor(1, "gam-merge-batch")
    try:
        tasks = []
        for file, path in zip(files, outs, strict=True):
            tasks.append(pool.submit(_item, file, path, tuple(overrides), device, force))
        for done, _ in enumerate(as_completed(tasks), 1):
            if progress:
                progress(done, len(files))
        return tuple(task.result() for task in tasks)
    finally:
        if executor is None:
            pool.shutdown(cancel_futures=True)


def _item(
    file: Path, out: Path, overrides: tuple[str, ...], device: str | torch.device, force: bool
) -> BatchItem:
    """Run one recipe, on a worker."""
    start = time.monotonic()
    try:
        report = merge_recipe(file, overrides=overrides, out=out, device=device, force=force).report
    except GamMergeError as error:
        return BatchItem(file, out, time.monotonic() - start, error=str(error))
    except Exception as error:  # such as out of memory: the next recipe may fit
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return BatchItem(file, out, time.monotonic() - start, error=text)
    return BatchItem(file, out, time.monotonic() - start, report=report)


def _name(file: Path) -> str:
    """Return the name of the output of a recipe file."""
    return file.absolute().parent.name if file.name == RECIPE_NAME else file.stem
