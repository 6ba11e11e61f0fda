"""Many recipes, one after another or on any executor: one that fails does not stop the rest."""

import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._common.types import Progress
from gam_merge._recipe import merge_recipe
from gam_merge._run.report import MergeReport
from gam_merge._write.adapter import RECIPE_NAME


@dataclass(frozen=True)
class BatchItem:
    """What became of one recipe: a report, or an error."""

    recipe: Path
    out: Path
    seconds: float
    report: MergeReport | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "recipe": str(self.recipe),
            "out": str(self.out),
            "seconds": self.seconds,
            "report": self.report.to_dict() if self.report else None,
            "error": self.error,
        }


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
    """Do the merges of many recipe files, each into a directory in ``out`` that is called as its file, or as the folder
    of a ``gam_merge_recipe.yaml``.

    overrides: over every recipe. executor: where the merges run, one after another in this process by default, since
    each of them uses all cores. progress: called with (recipes done, in all). The others are those of ``merge``.

    Raises GamMergeError if two recipes would go to one directory; what fails later is told in the items.
    """
    files = [Path(recipe) for recipe in recipes]
    if not files:
        raise GamMergeError("no recipes")
    outs = [Path(out) / _name(file) for file in files]
    for i, path in enumerate(outs):
        if path in outs[:i]:
            raise GamMergeError(
                f"{files[outs.index(path)]} and {files[i]} would both be written to {path}; rename one"
            )
    pool = executor or ThreadPoolExecutor(1, "gam-merge-batch")
    try:
        tasks = {}
        for i, (file, path) in enumerate(zip(files, outs, strict=True)):
            tasks[pool.submit(_item, file, path, tuple(overrides), device, force)] = i
        items: dict[int, BatchItem] = {}
        for task in as_completed(tasks):
            items[tasks[task]] = task.result()
            if progress:
                progress(len(items), len(files))
    finally:
        if executor is None:
            pool.shutdown(cancel_futures=True)
    return tuple(items[i] for i in range(len(files)))


def _item(
    file: Path, out: Path, overrides: tuple[str, ...], device: str | torch.device, force: bool
) -> BatchItem:
    """Runs on a worker."""
    start = time.monotonic()
    try:
        report = merge_recipe(file, overrides=overrides, out=out, device=device, force=force).report
    except GamMergeError as error:
        return BatchItem(file, out, time.monotonic() - start, error=str(error))
    except Exception as error:  # out of memory, say: the next recipe may well fit
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return BatchItem(file, out, time.monotonic() - start, error=text)
    return BatchItem(file, out, time.monotonic() - start, report=report)


def _name(file: Path) -> str:
    return file.absolute().parent.name if file.name == RECIPE_NAME else file.stem
