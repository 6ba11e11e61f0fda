"""``resize``: an adapter at another rank. It is the merge of one: the same walk, cut and report."""

from concurrent.futures import Executor
from os import PathLike
from typing import Unpack

from gam_merge._common.errors import GamMergeError
from gam_merge._common.types import Progress
from gam_merge._lineup.options import OutputOptions, explicit
from gam_merge._load import Source
from gam_merge._merge import MergeResult, merge


@explicit()
def resize(
    source: Source,
    *,
    out: str | PathLike[str] | None = None,
    force: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
    **options: Unpack[OutputOptions],
) -> MergeResult:
    """Change the rank of an adapter: each delta is cut to its leading singular values.

    Where an adapter has a lower rank than asked for, zeros are added.

    Args:
        source: a directory, a file, a Hub id or an adapter in memory; see ``load``.
        out: the directory to write; without it the result stays in memory until ``save``.
        force: replace an ``out`` that is empty or an earlier merge.
        executor: any ``concurrent.futures.Executor``; threads of this process by default.
        progress: called with (modules done, modules in all).

    Returns:
        MergeResult: the nearest adapter of that rank; ``report.energy_kept`` says what is left.

    Raises:
        GamMergeError: and then nothing is written; also if none of ``rank``, ``energy`` and
            ``max_rank`` is given, of which resize has no default.

    Example:
        >>> result = gm.resize("examples/adapters/addition", rank=4)
        >>> result.adapter.rank, round(result.report.energy_kept, 2)
        (4, 0.9)
    """
    if not any(options.get(name) is not None for name in ("rank", "energy", "max_rank")):
        raise GamMergeError(
            "give one of --rank, --energy or --max-rank (rank=, energy=, max_rank= in Python)"
        )
    return merge(
        [source],
        method="mean",
        out=out,
        force=force,
        executor=executor,
        progress=progress,
        **options,
    )
