"""How a plan is carried out, and what its method makes of a bucket.

Tensor legend: ``N`` adapters, ``L`` modules at a time.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._lineup.lineup import Plan
from gam_merge._lineup.settings import Settings
from gam_merge._methods import Method
from gam_merge._run.walk import walk

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """How to carry out a plan. Small, and picklable: it travels to every worker.

    ``anchor``: position of an adapter; ``missing``: whether a delta that is not there counts as "zero" or is left out
    of the mean, "skip"; ``dtype``: of the output.
    """

    settings: Settings
    method: Method
    anchor: int
    missing: Literal["zero", "skip"]
    dtype: torch.dtype
    device: torch.device
    flatten: bool = False  # DoRA into plain LoRA

    def params_of(self, module: str) -> dict[str, Any]:
        """The parameters of the method in a module, all of them."""
        return self.method.validate(self.settings.params_of(module))

    def module_weights(self, modules: Sequence[str]) -> Tensor:
        """The weights as the user gave them: (L, N) float64."""
        return torch.tensor(
            [self.settings.weights_of(name) for name in modules], dtype=torch.float64
        )

    def shares(self, modules: Sequence[str], adapters: Sequence[int]) -> Tensor:
        """What part each of some adapters has in the modules that they hold: (L, N) float64."""
        everyone = self.module_weights(modules)
        weights = everyone[:, list(adapters)]
        if not self.method.normalize:
            return weights
        return weights / (everyone if self.missing == "zero" else weights).sum(-1, keepdim=True)

    def mean_weights(self, modules: Sequence[str]) -> tuple[float, ...]:
        """The weight of each adapter on average over the modules, as a share of one where the method takes a mean."""
        weights = self.module_weights(modules)
        if self.method.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return tuple(weights.mean(0).tolist())


def combine(job: Job, bucket: Bucket, summary: Any = None) -> Merged:
    """What the method makes of a bucket that has deltas, before the cut to the output rank.

    In a weighted mean the others share the weight of an adapter without a delta here. Where that is to count as zero
    the result is scaled by the part of all weight that is theirs.
    """
    weights, total = weights_in(job, bucket)
    params = job.params_of(bucket.names[0])  # the same in all of a bucket
    more = {} if job.method.survey(params) is None else {"summary": summary}
    if not job.method.normalize:
        return job.method.merge(bucket, weights, **more, **params)
    present = weights.sum(-1, keepdim=True)
    merged = job.method.merge(bucket, weights / present, **more, **params)
    share = present / total  # (L, 1)
    return merged if job.missing == "skip" or (share == 1).all() else merged.scaled(share)


def weights_in(job: Job, bucket: Bucket) -> tuple[Tensor, Tensor]:
    """The user's weights of the adapters of a bucket (L, N), and the sums of the weights of all adapters (L, 1)."""
    everyone = job.module_weights(bucket.names).to(job.device)
    return everyone[:, bucket.adapters], everyone.sum(-1, keepdim=True)


def visit_all(
    plan: Plan, job: Job, visit: Callable[[Bucket], T], executor: Executor | None
) -> Generator[T]:
    factors = job.method.reads_factors
    return walk(
        plan,
        visit,
        device=job.device,
        anchor=job.anchor,
        factors=factors,
        shares=job.shares,
        executor=executor,
    )
