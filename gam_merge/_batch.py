"""``batch``: many recipes, one after another or on any executor. One that fails stops no other."""

import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
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
    """The outcome of one recipe: a report, or an error.

    Attributes:
        recipe: the file.
        out: the directory that was to be written.
        seconds: wall time.
        report: the report of the merge, unless it failed.
        error: why it failed.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("one.yaml").write_text("sources: [{path: examples/adapters/addition}]")
        >>> (item,) = gm.batch(["one.yaml"], "merges")
        >>> item.out.as_posix(), item.error
        ('merges/one', None)
    """

    recipe: Path
    out: Path
    seconds: float
    report: MergeReport | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
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
    """Do the merges of many recipe files, each into a directory of its own.

    Args:
        recipes: YAML files.
        out: the directory that all are written into. Each merge is named after its file, or as the
            folder of a ``gam_merge_recipe.yaml``.
        overrides: settings over every recipe, ``key.key=value``.
        device: ``"auto"`` takes a GPU if there is one.
        force: replace outputs that are empty or earlier merges.
        executor: where the merges run; by default one after another in this process, since each of
            them uses all cores.
        progress: called with (recipes done, recipes in all).

    Returns:
        tuple: one item per recipe, in their order, with its report or its error.

    Raises:
        GamMergeError: if two recipes would be written to one directory. Later failures are errors
            of the items.

    Example:
        >>> from pathlib import Path
        >>> for name in ("addition", "sorting"):
        ...     text = f"sources: [{{path: examples/adapters/{name}}}]"
        ...     _ = Path(f"{name}.yaml").write_text(text)
        >>> items = gm.batch(["addition.yaml", "sorting.yaml"], "merges", overrides=["method=mean"])
        >>> [item.error for item in items]
        [None, None]
    """
    files = [Path(recipe) for recipe in recipes]
    outs = _outs(files, Path(out))
    pool = executor or ThreadPoolExecutor(1, "gam-merge-batch")
    items: dict[int, BatchItem] = {}
    try:
        tasks: dict[Future[BatchItem], int] = {}
        for i, (file, path) in enumerate(zip(files, outs, strict=True)):
            tasks[pool.submit(_item, file, path, tuple(overrides), device, force)] = i
        for task in as_completed(tasks):
            items[tasks[task]] = task.result()
            if progress:
                progress(len(items), len(files))
    finally:
        if executor is None:
            pool.shutdown(cancel_futures=True)
    return tuple(items[i] for i in range(len(files)))


def _outs(files: Sequence[Path], out: Path) -> list[Path]:
    """Return the directory of each merge. Raises GamMergeError if two are the same."""
    if not files:
        raise GamMergeError("no recipes; give at least one file")
    outs: dict[Path, Path] = {}
    for file in files:
        path = out / _name(file)
        if path in outs:
            raise GamMergeError(
                f"{outs[path]} and {file} would both be written to {path}; rename one"
            )
        outs[path] = file
    return list(outs)


def _item(
    file: Path, out: Path, overrides: tuple[str, ...], device: str | torch.device, force: bool
) -> BatchItem:
    """Do one merge. Runs on a worker."""
    start = time.monotonic()
    report: MergeReport | None = None
    text: str | None = None
    try:
        report = merge_recipe(file, overrides=overrides, out=out, device=device, force=force).report
    except GamMergeError as error:
        text = str(error)
    except Exception as error:  # out of memory, say: the next recipe may well fit
        text = f"{type(error).__name__}: {error}".splitlines()[0]
    return BatchItem(file, out, time.monotonic() - start, report, text)


def _name(file: Path) -> str:
    return file.absolute().parent.name if file.name == RECIPE_NAME else file.stem
