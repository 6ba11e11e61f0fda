"""``average_checkpoints``: the mean of the last checkpoints of a training run."""

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Unpack

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import is_there
from gam_merge._lineup.options import RunOptions, explicit
from gam_merge._merge import MergeResult, merge
from gam_merge._read.formats import config_names, weights_names_without_config

# How trainers name their checkpoints, the number last: the first kind that a run has is taken.
_KINDS = (
    re.compile(r"checkpoint-(\d+)"),  # directories of transformers and of diffusers
    re.compile(r"(\d+)_adapters\.safetensors"),  # MLX-LM
    re.compile(r".+-step(\d+)\.safetensors"),  # sd-scripts, by steps
    re.compile(r".+-(\d{6})\.safetensors"),  # sd-scripts, by epochs
)


def find_checkpoints(run: str | PathLike[str], *, last: int | None = None) -> list[Path]:
    """Return the adapter checkpoints of a run, from the earliest on.

    last: only so many, the latest. Raises GamMergeError if there are none.
    """
    path = Path(run)
    if not is_there(path) or not path.is_dir():
        raise GamMergeError(f"{path}: no such directory; name the output folder of a training run")
    if last is not None and last < 1:
        raise GamMergeError(f"last must be positive, got {last}")
    entries = [entry for entry in path.iterdir() if _may_be_adapter(entry)]
    for kind in _KINDS:
        steps: dict[int, Path] = {}
        for entry in entries:
            match = kind.fullmatch(entry.name)
            if match:
                steps[int(match[1])] = entry
        if steps:
            checkpoints = [steps[step] for step in sorted(steps)]
            return checkpoints if last is None else checkpoints[-last:]
    raise GamMergeError(
        f"{path}: holds no adapter checkpoints (checkpoint-<step>/{config_names()[0]}, or "
        "safetensors files with a number, as MLX-LM and sd-scripts name them)"
    )


def _may_be_adapter(path: Path) -> bool:
    """Tell whether something in the folder of a run is a file, or a directory with an adapter."""
    names = [*config_names(), *weights_names_without_config()]
    return path.is_file() or any((path / name).is_file() for name in names)


@explicit(method="mean")
def average_checkpoints(
    run: str | PathLike[str],
    *,
    last: int | None = 5,
    ema: float | None = None,
    **options: Unpack[RunOptions],
) -> MergeResult:
    """Merge the last checkpoints of a training run, by default into the mean of their deltas.

    Args:
        run: the output folder of a trainer: with adapters in ``checkpoint-<step>``, or files that
            MLX-LM (``0000100_adapters.safetensors``) or sd-scripts (``NAME-step00000500``,
            ``NAME-000004``) saved on the way.
        last: upper limit for the number of checkpoints; None takes all.
        ema: the decay of an exponential moving average over them, in [0, 1); equal weights
            without it.

    Returns:
        MergeResult: the adapter (in memory, or on disk with ``out``), the report, the record.

    Raises:
        GamMergeError: and then nothing is written.

    Example:
        >>> import shutil
        >>> for step, name in ((100, "addition"), (200, "sorting")):
        ...     _ = shutil.copytree(f"examples/adapters/{name}", f"run/checkpoint-{step}")
        >>> result = gm.average_checkpoints("run", ema=0.5)
        >>> result.report.weights
        (0.5, 0.5)
    """
    checkpoints = find_checkpoints(run, last=last)
    if ema is not None and options.get("weights") is not None:
        raise GamMergeError("ema cannot be combined with weights; give one of them")
    options.setdefault("method", "mean")
    if options.get("weights") is None:
        options["weights"] = ema_weights(len(checkpoints), ema)
    return merge(checkpoints, **options)


def ema_weights(count: int, decay: float | None) -> Sequence[float]:
    """Return the weights of ``average <- decay * average + (1 - decay) * checkpoint``.

    From the first checkpoint on; equal if there is no decay.
    """
    if decay is None:
        return [1 / count] * count
    if not 0 <= decay < 1:
        raise GamMergeError(f"ema must be in [0, 1), got {decay}")
    weights = [(1 - decay) * decay ** (count - 1 - i) for i in range(count)]
    return [decay ** (count - 1), *weights[1:]]
