"""The choice of a method by a look at some of the modules, before the first is merged.

A merge spends most of its time on what the look does too, reading factors and multiplying them, so
the look takes a sample: one module in 14, but at least 8, spread evenly over the buckets. Within a
bucket they are in the order of the checksums of their names, so that no pattern of layers and types
decides which are seen. Only modules that at least two adapters change are in it. It follows from
the names and shapes alone: the same for any order of the adapters and any executor.
"""

from binascii import crc32
from concurrent.futures import Executor
from dataclasses import replace

from gam_merge._lineup.lineup import Lineup, LineupBucket
from gam_merge._methods import get_method
from gam_merge._methods._rule import Choice
from gam_merge._run.job import Job
from gam_merge._run.survey import survey

_ONE_IN = 14
_LEAST = 8


def choose(lineup: Lineup, job: Job, executor: Executor | None = None) -> Choice:
    """Return what a method that chooses takes for a lineup. Raises GamMergeError."""
    return job.method.choose(survey(sample(lineup), job, executor))


def decided(job: Job, choice: Choice) -> Job:
    """Return the job by the method that was chosen. Parameters that the user gave stay."""
    params = {**choice.params, **job.settings.params}
    settings = replace(job.settings, params=params)
    return replace(job, method=get_method(choice.method), settings=settings)


def sample(lineup: Lineup) -> Lineup:
    """Return the lineup of the modules that are looked at."""
    shared = [bucket for bucket in lineup.buckets if len(bucket.adapters) > 1]
    count = sum(len(bucket.names) for bucket in shared)
    size = min(count, max(_LEAST, count // _ONE_IN))
    wanted = {(2 * i + 1) * count // (2 * size) for i in range(size)}  # positions over all buckets
    buckets: list[LineupBucket] = []
    start = 0
    for bucket in shared:
        names = bucket.names
        shuffled = sorted(range(len(names)), key=lambda j: crc32(names[j].encode()))
        seen = [j for position, j in enumerate(shuffled, start) if position in wanted]
        start += len(names)
        if seen:
            buckets.append(bucket.select(sorted(seen)))
    return replace(lineup, buckets=tuple(buckets))
