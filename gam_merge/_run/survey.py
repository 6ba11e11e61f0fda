"""Passes over all modules before anything is written: summaries of methods, needed ranks."""

from concurrent.futures import Executor
from functools import partial
from typing import Any

from torch import Tensor

from gam_kernels import compress, rank_for_energy
from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._lineup.lineup import Lineup
from gam_merge._run.job import Job, combine, visit_all, weights_in


def survey(lineup: Lineup, job: Job, executor: Executor | None = None) -> Any:
    """Return the summary of all modules for a method that needs one, else None."""
    passes = 0
    for bucket in lineup.buckets:
        passes = max(passes, len(job.method.surveys(job.params_of(bucket.names[0]))))
    summary: Any = None
    for index in range(passes):
        before = summary
        visit = partial(_survey_bucket, job, index, before)
        for part in visit_all(lineup, job, visit, executor):
            summary = _sum(summary, part)
    return summary


def needed_ranks(
    lineup: Lineup,
    job: Job,
    energy: float,
    *,
    summary: Any = None,
    executor: Executor | None = None,
) -> dict[str, int]:
    """Return the fewest ranks in which each module keeps a share of its energy, by name.

    At most those of the lineup. A stack needs what the neediest of its matrices does. Raises
    GamMergeError.
    """
    needed = dict.fromkeys(lineup.names, 0)
    visit = partial(_needed_bucket, job, energy, summary)
    for ranks in visit_all(lineup, job, visit, executor):
        for name, rank in ranks:
            needed[name] = max(needed[name], rank)
    return needed


def _needed_bucket(job: Job, energy: float, summary: Any, bucket: Bucket) -> list[tuple[str, int]]:
    """Return the ranks that the matrices of a bucket need. Runs on a worker."""
    needed: list[tuple[str, int]] = []
    if not bucket.deltas:
        return needed
    for part in job.method.parts(bucket):
        s = _spectrum(combine(job, part, summary), part)
        ranks = rank_for_energy(s, energy).clamp(max=part.output_rank)  # (L,)
        needed += zip(part.names, ranks.tolist(), strict=True)
    return needed


def _spectrum(merged: Merged, bucket: Bucket) -> Tensor:
    """Return the singular values of a result: (L, k), falling."""
    if merged.s is not None:
        return merged.s
    return compress(merged.left, merged.right, *merged.grams(bucket), rank=0)[2]


def _survey_bucket(job: Job, index: int, before: Any, bucket: Bucket) -> Any:
    """Return what a pass finds in a bucket, after those before it. Runs on a worker."""
    looks = job.method.surveys(job.params_of(bucket.names[0]))
    summary: Any = None
    if index >= len(looks) or not bucket.deltas:
        return summary
    for part in job.method.parts(bucket):
        weights, _ = weights_in(job, part)
        summary = _sum(summary, looks[index](part, weights, before))
    return summary


def _sum(x: Any, y: Any) -> Any:
    """Return the sum of two summaries, of which one may be missing."""
    if x is None:
        return y
    return x if y is None else x + y
