"""How a lineup is merged: settings, method, device; and one bucket by its method.

Tensor legend: ``N`` adapters, ``L`` modules at a time.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._lineup.lineup import Lineup
from gam_merge._lineup.options import Missing
from gam_merge._lineup.settings import Settings
from gam_merge._methods import Method
from gam_merge._run.walk import walk

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """How to merge a lineup. Small, and picklable: it travels to every worker.

    Attributes:
        settings: weights and parameters, by module.
        method: the method.
        anchor: position of the adapter that the others are aligned to.
        missing: whether a delta that is missing counts as zero or is left out of the mean.
        dtype: the dtype of the output.
        device: where it is computed.
        flatten_dora: write DoRA as plain LoRA.
    """

    settings: Settings
    method: Method
    anchor: int
    missing: Missing
    dtype: torch.dtype
    device: torch.device
    flatten_dora: bool = False

    def params_of(self, module: str) -> dict[str, Any]:
        """Return all parameters of the method in a module."""
        return self.method.validate(self.settings.params_of(module))

    def module_weights(self, modules: Sequence[str]) -> Tensor:
        """Return the weights as the user gave them: (L, N) float64."""
        rows = [self.settings.weights_of(name) for name in modules]
        return torch.tensor(rows, dtype=torch.float64)

    def shares(self, modules: Sequence[str], adapters: Sequence[int]) -> Tensor:
        """Return the share of some adapters in the modules that they hold: (L, N) float64."""
        all_weights = self.module_weights(modules)
        weights = all_weights[:, list(adapters)]
        if not self.method.normalize:
            return weights
        counted = all_weights if self.missing == "zero" else weights
        return weights / counted.sum(-1, keepdim=True)

    def mean_weights(self, modules: Sequence[str]) -> tuple[float, ...]:
        """Return the mean weight of each adapter over the modules.

        As a share of one where the method takes a mean.
        """
        weights = self.module_weights(modules)  # (L, N)
        if self.method.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return tuple(weights.mean(0).tolist())


def combine(job: Job, bucket: Bucket, summary: Any = None) -> Merged:
    """Merge a bucket that has deltas by the method, before the cut to the output rank.

    In a weighted mean the others share the weight of an adapter without a delta here. Where that
    counts as zero the result is scaled by the part of all weight that is theirs.
    """
    weights, total = weights_in(job, bucket)
    params = job.params_of(bucket.names[0])  # the same in all of a bucket
    if job.method.surveys(params):
        params["summary"] = summary
    if not job.method.normalize:
        return job.method.merge(bucket, weights, **params)
    present = weights.sum(-1, keepdim=True)
    merged = job.method.merge(bucket, weights / present, **params)
    share = present / total  # (L, 1)
    whole = job.missing == "skip" or bool((share == 1).all())
    return merged if whole else merged.scaled(share)


def weights_in(job: Job, bucket: Bucket) -> tuple[Tensor, Tensor]:
    """Return the weights of the adapters of a bucket (L, N), and the sums over all (L, 1)."""
    all_weights = job.module_weights(bucket.names).to(job.device)
    return all_weights[:, bucket.adapters], all_weights.sum(-1, keepdim=True)


def visit_all(
    lineup: Lineup, job: Job, visit: Callable[[Bucket], T], executor: Executor | None
) -> Generator[T]:
    """Visit every bucket of a lineup, as ``walk`` does, read as the method needs it."""
    return walk(
        lineup,
        visit,
        device=job.device,
        anchor=job.anchor,
        factors=job.method.reads_factors,
        shares=job.shares,
        executor=executor,
    )
