"""``convert``: an adapter in the grammar of another format. It is the merge of one, by ``copy``."""

from concurrent.futures import Executor
from os import PathLike

import torch

from gam_merge._common.types import Progress
from gam_merge._lineup.options import BaseModel
from gam_merge._load import Source
from gam_merge._merge import MergeResult, merge


def convert(
    source: Source,
    *,
    format: str | None = None,
    out: str | PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    base_model: BaseModel | None = None,
    alpha: float | None = None,
    force: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Write an adapter in another format: every delta stays, and so does every name.

    The factors are copied, with their scale folded into B: exact, but for one rounding of B where
    the scale is not a power of two. Names are translated where the two formats name the modules of
    a model differently. A layer that one of them fuses is split with its factor A shared, or put
    together at the sum of the ranks; a part of it that the source does not adapt is zero.

    Args:
        source: a directory, a file, a Hub id or an adapter in memory; see ``load``.
        format: ``"peft"``, ``"kohya"``, ``"diffusers"``, ``"mlx"`` or ``"gguf"``; by default that
            of the source, or the one whose files end as ``out`` does.
        out: the directory to write, or a file ``NAME.safetensors`` or ``NAME.gguf``; without it
            the result stays in memory until ``save``.
        dtype: the dtype of the output; by default that of the source.
        base_model: the base model, where the source does not name it; from and into GGUF a
            directory or a Hub id, of which the config alone is read.
        alpha: the alpha of all modules, for a file without a config.
        force: replace an ``out`` that is empty or an earlier output.
        executor: any ``concurrent.futures.Executor``; threads of this process by default.
        progress: called with (modules done, modules in all).

    Returns:
        MergeResult: the adapter (in memory, or on disk with ``out``), the report, the record.

    Raises:
        GamMergeError: for a module that the other format cannot hold or has no name for; and then
            nothing is written.

    Example:
        >>> result = gm.convert("examples/adapters/addition", format="mlx", out="converted")
        >>> result.adapter.format, len(result.adapter.modules)
        ('mlx', 210)
    """
    return merge(
        [source],
        method="copy",
        format=format,
        out=out,
        dtype=dtype,
        base_model=base_model,
        alpha=alpha,
        force=force,
        executor=executor,
        progress=progress,
    )
