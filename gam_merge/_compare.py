"""``compare``: what several adapters have in common, and what a merge of them would do, before it is done.

Everything comes from the small matrices that a merge works with; nothing of size out x in is formed. Signs, which
are no function of small matrices, are compared on a few sampled rows of the deltas.

Tensor legend: ``N`` adapters, ``L`` modules at a time, ``m`` out, ``n`` in, ``k`` numerical ranks.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import fields
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.types import Progress, Setting
from gam_merge._deltas.bucket import Bucket
from gam_merge._diagnose.comparison import Comparison, ModuleComparison
from gam_merge._diagnose.measures import Measures
from gam_merge._diagnose.pairwise import Angles, Pair, pairwise, signs
from gam_merge._load import Source
from gam_merge._plan import plan
from gam_merge._run.job import Job, combine
from gam_merge._run.walk import walk

_SAMPLED_ROWS = 16  # of each delta, for the agreement of signs


def compare(
    sources: Sequence[Source],
    *,
    weights: Sequence[Setting] | None = None,
    anchor: int | str = 0,
    device: str | torch.device = "auto",
    base_model: str | None = None,
    alpha: float | Sequence[float] | None = None,
    allow_base_mismatch: bool = False,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measure adapters against each other: overlaps of their subspaces, cosines, norms, what ``mean`` and ``gam``
    would leave of them.

    Arguments are those of ``merge``. seed: of the rows on which signs are compared.

    Raises GamMergeError wherever ``merge`` would, and for fewer than two adapters that have a weight.
    """
    planned = plan(
        sources,
        method="gam",
        weights=weights,
        anchor=anchor,
        device=device,
        base_model=base_model,
        alpha=alpha,
        allow_base_mismatch=allow_base_mismatch,
    )
    lined_up, job = planned.lineup, planned.job
    if len(lined_up.adapters) < 2:
        raise GamMergeError("compare needs two adapters with a weight; inspect looks at one")
    found: list[_Found] = []
    modules: list[ModuleComparison] = []
    for part in walk(
        lined_up,
        partial(_visit, job, seed),
        device=job.device,
        anchor=job.anchor,
        shares=job.shares,
        executor=executor,
    ):
        found.append(part)
        modules += part.modules
        if progress:
            progress(len(modules), lined_up.matrices)
    order = sorted(range(len(modules)), key=lambda j: modules[j].name)
    measures = Measures(
        *(
            np.concatenate([getattr(part.measures, field.name) for part in found])
            for field in fields(Measures)
        )
    )
    return Comparison(
        sources=tuple(adapter.source for adapter in lined_up.adapters),
        weights=job.mean_weights(lined_up.names),
        anchor=job.anchor,
        base_model=lined_up.base_model,
        modules=tuple(modules[j] for j in order),
        measures=measures[order],
    )


class _Found(NamedTuple):
    """What becomes of a bucket."""

    modules: list[ModuleComparison]
    measures: Measures  # (L, N, N)


def _visit(job: Job, seed: int, bucket: Bucket) -> _Found:
    """Runs on a worker."""
    weights = job.module_weights(bucket.names)  # (L, N)
    size, everyone = len(bucket.names), range(weights.shape[-1])
    sums = {
        field.name: torch.zeros(size, len(everyone), len(everyone)).double()
        for field in fields(Measures)
    }
    sums |= {"mean_energy": torch.zeros(size).double(), "gam_energy": torch.zeros(size).double()}
    angles, doubts = Angles({}, {}), dict[str, Tensor]()
    if bucket.deltas:
        found, angles = pairwise(bucket)
        merged = combine(job, bucket)
        found |= signs(bucket, _rows(bucket.shape[0], seed).to(job.device))
        where = torch.tensor(bucket.adapters)
        for name, value in found.items():
            sums[name][:, where[:, None], where] = (
                value.cpu()
            )  # (L, N, N), zero where an adapter has no delta
        weights = weights / weights.sum(-1, keepdim=True)
        sums["mean_energy"] = torch.einsum("li,lij,lj->l", weights, sums["gram"], weights).clamp(
            min=0.0
        )
        sums["gam_energy"], doubts = merged.norm(bucket).square().cpu(), dict(merged.warnings)
    measures = Measures(**{name: value.numpy() for name, value in sums.items()})
    return _Found(_modules(bucket, everyone, angles, doubts), measures)


def _rows(count: int, seed: int) -> Tensor:
    """Which of ``count`` rows are looked at: the same for every module and every adapter."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:_SAMPLED_ROWS]


def _modules(
    bucket: Bucket, everyone: range, angles: Angles, doubts: Mapping[str, Tensor]
) -> list[ModuleComparison]:
    present = dict(zip(bucket.adapters, bucket.deltas, strict=True))
    spectra = {i: torch.linalg.svdvals(delta.core).tolist() for i, delta in present.items()}

    def named(cosines: Mapping[Pair, Tensor], j: int) -> dict[Pair, tuple[float, ...]]:
        places = bucket.adapters
        return {
            (places[i], places[k]): tuple(values[j].tolist()) for (i, k), values in cosines.items()
        }

    return [
        ModuleComparison(
            name=name,
            shape=bucket.shape,
            ranks=tuple(present[i].core.shape[-1] if i in present else 0 for i in everyone),
            spectra=tuple(tuple(spectra[i][j]) if i in present else () for i in everyone),
            cosines_u=named(angles.u, j),
            cosines_v=named(angles.v, j),
            notes=tuple(text for text, where in doubts.items() if where[j]),
        )
        for j, name in enumerate(bucket.matrices)
    ]
