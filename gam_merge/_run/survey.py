"""What must be known of all modules before the first is written: of a method that looks at them together, and of
ranks that follow from energies.
"""

from concurrent.futures import Executor
from functools import partial, reduce
from typing import Any

from gam_kernels import compress, rank_for_energy
from gam_merge._deltas.bucket import Bucket
from gam_merge._lineup.lineup import Plan
from gam_merge._run.job import Job, combine, visit_all, weights_in


def survey(plan: Plan, job: Job, executor: Executor | None = None) -> Any:
    """What a method that looks at all modules at once must know of them, from a pass of its own; else None."""
    if not any(job.method.survey(job.params_of(bucket.names[0])) for bucket in plan.buckets):
        return None
    return reduce(_add, visit_all(plan, job, partial(_survey_bucket, job), executor), None)


def needed_ranks(
    plan: Plan, job: Job, energy: float, *, summary: Any = None, executor: Executor | None = None
) -> dict[str, int]:
    """The fewest ranks, up to those of the plan, in which each module keeps a share of its energy, by name.

    A pass of its own. A stack needs what the neediest of its matrices does. Raises GamMergeError.
    """
    needed = dict.fromkeys(plan.names, 0)
    for found in visit_all(plan, job, partial(_needed_bucket, job, energy, summary), executor):
        for name, rank in found:
            needed[name] = max(needed[name], rank)
    return needed


def _needed_bucket(job: Job, energy: float, summary: Any, bucket: Bucket) -> list[tuple[str, int]]:
    """Runs on a worker."""
    found: list[tuple[str, int]] = []
    for part in job.method.parts(bucket) if bucket.deltas else ():
        merged = combine(job, part, summary)
        s = (
            compress(merged.left, merged.right, *merged.grams(part))[2]
            if merged.s is None
            else merged.s
        )
        found += zip(
            part.names, rank_for_energy(s, energy).clamp(max=part.output_rank).tolist(), strict=True
        )
    return found


def _survey_bucket(job: Job, bucket: Bucket) -> Any:
    """Runs on a worker."""
    look = job.method.survey(job.params_of(bucket.names[0]))
    if look is None or not bucket.deltas:
        return None
    return reduce(
        _add, (look(part, weights_in(job, part)[0]) for part in job.method.parts(bucket)), None
    )


def _add(x: Any, y: Any) -> Any:
    return y if x is None else x if y is None else x + y
