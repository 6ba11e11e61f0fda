"""The mean of the last checkpoints of a training run."""

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import is_there
from gam_merge._merge import MergeResult, merge
from gam_merge._read.peft import CONFIG_NAME

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def find_checkpoints(run: str | PathLike[str], *, last: int | None = None) -> list[Path]:
    """The adapter checkpoints ``checkpoint-<step>`` in a run's output folder, from the earliest to the latest.

    last: of these the last so many. Raises GamMergeError if there are none.
    """
    path = Path(run)
    if not is_there(path) or not path.is_dir():
        raise GamMergeError(f"{path}: no such directory; name the output folder of a training run")
    if last is not None and last < 1:
        raise GamMergeError(f"last {last} is not positive")
    steps = {
        int(match[1]): entry
        for entry in path.iterdir()
        if (match := _CHECKPOINT.fullmatch(entry.name))
    }
    found = [steps[step] for step in sorted(steps) if (steps[step] / CONFIG_NAME).is_file()]
    if not found:
        raise GamMergeError(
            f"{path}: holds no adapter checkpoints (checkpoint-<step>/{CONFIG_NAME})"
        )
    return found if last is None else found[-last:]


def average_checkpoints(
    run: str | PathLike[str],
    *,
    last: int | None = 5,
    ema: float | None = None,
    out: str | PathLike[str] | None = None,
    method: str = "mean",
    **options: Any,
) -> MergeResult:
    """Merge the last checkpoints of a training run, by default into the exact mean of their deltas.

    run: the output folder of a trainer, with adapters in ``checkpoint-<step>``. last: how many, at most; None for all.
    ema: the decay of an exponential moving average over them; equal weights without it. ``options`` are those of
    ``merge``. Raises GamMergeError.
    """
    found = find_checkpoints(run, last=last)
    return merge(found, method=method, weights=ema_weights(len(found), ema), out=out, **options)


def ema_weights(count: int, decay: float | None) -> Sequence[float]:
    """Of ``average <- decay * average + (1 - decay) * checkpoint``, from the first on; equal if there is no decay."""
    if decay is None:
        return [1 / count] * count
    if not 0 <= decay < 1:
        raise GamMergeError(f"ema {decay} is no decay: give a number from 0 to below 1")
    return [decay ** (count - 1)] + [
        (1 - decay) * decay ** (count - 1 - i) for i in range(1, count)
    ]
