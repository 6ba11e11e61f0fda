"""``resize``: an adapter at another rank. It is the merge of one: the same walk, cut and report."""

from concurrent.futures import Executor
from os import PathLike

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._common.types import Progress
from gam_merge._load import Source
from gam_merge._merge import MergeResult, merge


def resize(
    source: Source,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_rank: int | None = None,
    per_module_rank: bool = False,
    out: str | PathLike[str] | None = None,
    target: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "auto",
    base_model: str | None = None,
    alpha: float | None = None,
    force: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """The adapter of another rank that comes closest to one: each delta cut to its leading singular values.

    rank: of every module; where the adapter has less, zeros are added. energy: the share of each module's squared norm
    to keep instead, at most in ``max_rank``, in one rank for all or each module in its own with ``per_module_rank``.
    The others are those of ``merge``. What was lost is ``energy_kept`` in the report. Raises GamMergeError.
    """
    if rank is None and energy is None and max_rank is None:
        raise GamMergeError(
            "to what size? give --rank, --energy or --max-rank (rank=, energy=, max_rank= in Python)"
        )
    return merge(
        [source],
        method="mean",
        rank=rank,
        energy=energy,
        max_rank=max_rank,
        per_module_rank=per_module_rank,
        out=out,
        target=target,
        dtype=dtype,
        device=device,
        base_model=base_model,
        alpha=alpha,
        force=force,
        executor=executor,
        progress=progress,
    )
