"""``compare``: what several adapters have in common and what a merge of them would do, beforehand.

Everything comes from the small matrices that a merge works with; nothing of size out x in is
formed. Signs, which are not a function of small matrices, are compared on a few sampled rows of
the deltas.

Tensor legend: ``N`` adapters, ``L`` modules at a time, ``m`` out, ``n`` in, ``k`` numerical ranks.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import fields, replace
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
from gam_merge._diagnose.verdict import Recommendation
from gam_merge._lineup.options import MergeOptions
from gam_merge._load import Source, load_all
from gam_merge._methods import get_method
from gam_merge._methods.auto import EVIDENCE
from gam_merge._plan import MergePlan, plan
from gam_merge._read.adapter import Adapter
from gam_merge._run.choice import choose
from gam_merge._run.job import Job, combine
from gam_merge._run.walk import walk

_SAMPLED_ROWS = 16  # of each delta, to compare signs


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
    """Measure adapters against each other before a merge.

    Reports overlaps of their subspaces, cosines, norms, and what ``mean`` and ``gam`` would keep.
    Only factors are compared: adapters with unlike heads are, too. The recommendation is what
    ``auto``, the default of ``merge``, takes for these adapters.

    Args:
        sources: directories, files, Hub ids or adapters in memory, at least two; see ``load``.
        weights: one per source, as in ``merge``; equal by default.
        anchor: the source that ``gam`` aligns the others to: its position, or as in ``sources``.
        device: "auto", "cpu", "cuda" or any torch device.
        base_model: the base model of bare files without a config, and of DoRA adapters.
        alpha: lora_alpha of bare files without a config: one for all, or one per source.
        allow_base_mismatch: accept adapters whose configs name different base models.
        seed: seed for sampling the rows whose signs are compared.
        executor: where the work runs; by default in threads of this process.
        progress: called with (modules done, modules in all).

    Returns:
        Comparison: all figures, by layer, type and module; a verdict and a recommendation.

    Raises:
        GamMergeError: where ``merge`` would because of the factors, and for fewer than two
            adapters with a weight.

    Example:
        >>> comparison = gm.compare(["examples/adapters/addition", "examples/adapters/sorting"])
        >>> comparison.verdict.partition(":")[0]
        'Separate initialisations'
        >>> comparison.recommendation.method
        'consensus'
        >>> round(float(comparison.by("type")["self_attn.q_proj"].times_chance_u), 1)
        4.5
    """
    adapters = load_all(sources, base_model, alpha)
    options: MergeOptions = {
        "method": "auto",
        "weights": weights,
        "anchor": anchor,
        "device": device,
        "base_model": base_model,
        "format": adapters[0].format,
        "allow_base_mismatch": allow_base_mismatch,
    }
    planned = plan([replace(adapter, extras={}) for adapter in adapters], **options)
    lined_up = planned.lineup
    if len(lined_up.adapters) < 2:
        raise GamMergeError(
            "compare needs two adapters with a weight above zero; use inspect to look at one"
        )
    choice = choose(lined_up, planned.job, executor)
    job = replace(planned.job, method=get_method("gam"))
    visits = walk(
        lined_up,
        partial(_visit, job, seed),
        device=job.device,
        anchor=job.anchor,
        shares=job.shares,
        executor=executor,
    )
    modules: list[ModuleComparison] = []
    parts: list[Measures] = []
    for visit in visits:
        modules += visit.modules
        parts.append(visit.measures)
        if progress:
            progress(len(modules), lined_up.matrices)
    order = sorted(range(len(modules)), key=lambda j: modules[j].name)
    return Comparison(
        sources=tuple(adapter.source for adapter in lined_up.adapters),
        weights=job.mean_weights(lined_up.names),
        anchor=job.anchor,
        base_model=lined_up.base_model,
        modules=tuple(modules[j] for j in order),
        measures=_joined(parts)[order],
        merge_notes=_merge_notes(adapters, planned, options),
        recommendation=Recommendation(choice.method, choice.params, choice.reason, EVIDENCE),
    )


def _merge_notes(
    adapters: Sequence[Adapter], planned: MergePlan, options: MergeOptions
) -> tuple[str, ...]:
    """Return the notes of a merge, which also has extras; only factors are compared."""
    if not any(adapter.extras for adapter in adapters):
        return planned.lineup.notes
    try:
        return plan(adapters, **options).lineup.notes
    except GamMergeError as error:
        return (*planned.lineup.notes, f"a merge would be refused: {error}")


class _Visit(NamedTuple):
    """The result of visiting a bucket."""

    modules: list[ModuleComparison]
    measures: Measures  # (L, N, N)


def _joined(parts: Sequence[Measures]) -> Measures:
    """Concatenate the measures of several buckets."""
    joined = {}
    for field in fields(Measures):
        joined[field.name] = np.concatenate([getattr(part, field.name) for part in parts])
    return Measures(**joined)


def _visit(job: Job, seed: int, bucket: Bucket) -> _Visit:
    """Compare the adapters in a bucket. Runs on a worker."""
    weights = job.module_weights(bucket.names)  # (L, N)
    size, count = weights.shape
    sums = {field.name: torch.zeros(size, count, count).double() for field in fields(Measures)}
    sums |= {"mean_energy": torch.zeros(size).double(), "gam_energy": torch.zeros(size).double()}
    angles, warnings = Angles({}, {}), dict[str, Tensor]()
    if bucket.deltas:
        of_pairs, angles = pairwise(bucket)
        of_pairs |= signs(bucket, _rows(bucket.shape[0], seed).to(job.device))
        index = torch.tensor(bucket.adapters)
        for name, value in of_pairs.items():  # (L, p, p); the rest of (L, N, N) stays zero
            sums[name][:, index[:, None], index] = value.cpu()
        weights = weights / weights.sum(-1, keepdim=True)
        mean_energy = torch.einsum("li,lij,lj->l", weights, sums["gram"], weights)
        sums["mean_energy"] = mean_energy.clamp(min=0.0)
        merged = combine(job, bucket)
        sums["gam_energy"], warnings = merged.norm(bucket).square().cpu(), dict(merged.warnings)
    measures = Measures(**{name: value.numpy() for name, value in sums.items()})
    return _Visit(_modules(bucket, count, angles, warnings), measures)


def _rows(count: int, seed: int) -> Tensor:
    """Sample from ``count`` rows: the same ones for every module and every adapter."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:_SAMPLED_ROWS]


def _modules(
    bucket: Bucket, count: int, angles: Angles, warnings: Mapping[str, Tensor]
) -> list[ModuleComparison]:
    """Describe each module of a bucket. count: of adapters, with and without a delta in it."""
    ranks = [0] * count
    spectra: list[list[tuple[float, ...]]] = [[()] * len(bucket.names) for _ in range(count)]
    for i, delta in zip(bucket.adapters, bucket.deltas, strict=True):
        ranks[i] = delta.core.shape[-1]
        spectra[i] = [tuple(row) for row in torch.linalg.svdvals(delta.core).tolist()]
    modules = []
    for j, name in enumerate(bucket.matrices):
        module = ModuleComparison(
            name=name,
            shape=bucket.shape,
            ranks=tuple(ranks),
            spectra=tuple(of_adapter[j] for of_adapter in spectra),
            cosines_u=_cosines(bucket, angles.u, j),
            cosines_v=_cosines(bucket, angles.v, j),
            notes=tuple(text for text, doubtful in warnings.items() if doubtful[j]),
        )
        modules.append(module)
    return modules


def _cosines(
    bucket: Bucket, cosines: Mapping[Pair, Tensor], j: int
) -> dict[Pair, tuple[float, ...]]:
    """Return the cosines of module ``j``, by positions in the merge rather than in the bucket."""
    of_module: dict[Pair, tuple[float, ...]] = {}
    for (i, k), values in cosines.items():
        of_module[bucket.adapters[i], bucket.adapters[k]] = tuple(values[j].tolist())
    return of_module
