"""A merge as asked for -> what to do and how: every check that needs no tensor, in one place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import dtype_name, parse_dtype, pick_device
from gam_merge._common.types import Setting
from gam_merge._lineup.lineup import Plan, make_plan
from gam_merge._lineup.ranks import RankPolicy, check_ranks
from gam_merge._lineup.serving import check_target
from gam_merge._lineup.settings import Settings, make_settings
from gam_merge._load import Source, load
from gam_merge._methods import Method, get_method
from gam_merge._models.base import resolve_base
from gam_merge._models.checkpoint import Model
from gam_merge._models.placement import base_weights
from gam_merge._read.adapter import Adapter
from gam_merge._read.record import Record, RecordedSource
from gam_merge._read.weight import BaseWeight
from gam_merge._run.dora import base_weights_needed, check_dora, is_dora
from gam_merge._run.estimate import Estimate, estimate
from gam_merge._run.job import Job
from gam_merge._write.directory import check_output

BaseModel = (
    str | PathLike[str] | Mapping[str, BaseWeight]
)  # a name or a place, or weights by module


@dataclass(frozen=True)
class MergePlan:
    """A merge that is settled and not begun: the modules to merge, and how."""

    plan: Plan
    job: Job
    policy: RankPolicy = field(
        default_factory=RankPolicy
    )  # for ranks that only a look at the deltas can tell
    target: str | None = None
    base: Model | None = None  # the base model whose weights are read, for DoRA

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know beforehand. Raises GamMergeError if the target does not take the merge."""
        read = self.base.notes if self.base else ()
        return (*self.plan.notes, *read, *check_target(self.plan, self.target))

    def estimate(self) -> Estimate:
        """How long the merge will take and how much memory, from a rehearsal of about a second. Reads no tensor."""
        return estimate(self.plan, self.job)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "method": self.job.method.name,
            "params": dict(self.job.settings.params),
            "sources": [adapter.source for adapter in self.plan.adapters],
            "weights": list(self.job.mean_weights(self.plan.names)),
            "anchor": self.job.anchor,
            "missing": self.job.missing,
            "base_model": self.plan.base_model,
            "device": str(self.job.device),
            "rank": self.plan.rank,
            "energy": self.policy.energy,
            "per_module_rank": self.policy.per_module,
            "dtype": dtype_name(self.job.dtype),
            "nbytes": self.plan.nbytes,
            "notes": list(self.notes),
            "buckets": [
                {
                    "shape": bucket.shape,
                    "adapters": bucket.adapters,
                    "ranks": bucket.ranks,
                    "modules": bucket.names,
                }
                for bucket in self.plan.buckets
            ],
        }


def plan(
    sources: Sequence[Source],
    *,
    method: str = "gam",
    weights: Sequence[Setting] | None = None,
    out: str | PathLike[str] | None = None,
    anchor: int | str = 0,
    missing: str = "zero",
    flatten_dora: bool = False,
    rank: int | None = None,
    energy: float | None = None,
    max_rank: int | None = None,
    per_module_rank: bool = False,
    target: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "auto",
    base_model: BaseModel | None = None,
    alpha: float | Sequence[float] | None = None,
    allow_base_mismatch: bool = False,
    params: Mapping[str, Setting] | None = None,
    force: bool = False,
) -> MergePlan:
    """What ``merge`` would do with the same arguments, from headers alone: no tensor is read, nothing is written.

    Raises GamMergeError wherever ``merge`` would before it reads the first tensor.
    """
    chosen = get_method(method)
    policy = check_ranks(RankPolicy(rank, energy, max_rank, per_module_rank))
    adapters = _load_all(sources, base_model, alpha)
    given = _check_weights(weights, len(adapters))
    position = _anchor_position(anchor, sources, given)
    kept = [i for i, weight in enumerate(given) if weight != 0]
    chosen.check_count(len(kept))
    settings = _settings(
        chosen, [adapters[i] for i in kept], [given[i] for i in kept], params or {}
    )
    lined_up = make_plan(
        [adapters[i] for i in kept],
        settings=settings,
        rank=policy.rank,
        max_rank=policy.max_rank,
        native="sum" if policy.energy is not None else chosen.rank,
        dtype=parse_dtype(dtype),
        allow_base_mismatch=allow_base_mismatch,
    )
    job = Job(
        settings=settings,
        method=chosen,
        anchor=kept.index(position),
        missing=_check_missing(missing),
        dtype=lined_up.dtype,
        device=pick_device(device),
        flatten=flatten_dora,
    )
    if out is not None:
        files = [adapter.file for adapter in adapters if adapter.file is not None]
        check_output(Path(out), force=force, sources=files)
    base: Model | None = None
    if any(map(is_dora, lined_up.adapters)):
        lined_up, base = _with_base(
            lined_up, base_model, policy, dtype=parse_dtype(dtype), flatten=flatten_dora
        )
    planned = MergePlan(lined_up, job, policy, target, base)
    if not policy.looks:
        check_target(lined_up, target)
    return planned


def _with_base(
    plan: Plan,
    base: BaseModel | None,
    policy: RankPolicy,
    *,
    dtype: torch.dtype | None,
    flatten: bool,
) -> tuple[Plan, Model | None]:
    """The plan with the base weights that DoRA adapters need, and the model that they are of."""
    if base is None:
        raise base_weights_needed(plan.adapters)
    if flatten and policy.looks:
        raise GamMergeError(
            "DoRA is flattened to a rank that is given; use rank or max_rank, not energy"
        )
    check_dora(plan.adapters)
    model = None if isinstance(base, Mapping) else resolve_base(base)
    weights: dict[str, BaseWeight] = dict(base) if isinstance(base, Mapping) else {}
    if model is not None:
        for adapter in plan.adapters:
            weights |= base_weights(model, adapter)
    buckets = [
        replace(bucket, bases=tuple(weights[name] for name in bucket.names))
        for bucket in plan.buckets
    ]
    stored = [
        m.magnitude.dtype
        for a in plan.adapters
        for m in a.modules.values()
        if m.magnitude is not None
    ]
    widest = dtype or reduce(torch.promote_types, stored)
    return replace(plan, buckets=tuple(buckets), magnitude_dtype=None if flatten else widest), model


def _load_all(
    sources: Sequence[Source], base_model: BaseModel | None, alpha: float | Sequence[float] | None
) -> list[Adapter]:
    if isinstance(sources, str | PathLike):
        raise GamMergeError("sources is one path; give a list of adapters")
    if not sources:
        raise GamMergeError("no adapters to merge")
    alphas = list(alpha) if isinstance(alpha, Sequence) else [alpha] * len(sources)
    if len(alphas) == 1:
        alphas *= len(sources)
    if len(alphas) != len(sources):
        raise GamMergeError(
            f"{len(alphas)} alphas for {len(sources)} adapters; give one, or one for each"
        )
    name = None if base_model is None or isinstance(base_model, Mapping) else str(base_model)
    return [
        load(source, base_model=name, alpha=a) for source, a in zip(sources, alphas, strict=True)
    ]


def _check_weights(weights: Sequence[Setting] | None, count: int) -> list[Setting]:
    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise GamMergeError(f"{len(weights)} weights for {count} adapters; give one for each")
    if all(weight == 0 for weight in weights):
        raise GamMergeError(f"all {count} weights are zero; there is nothing to merge")
    return list(weights)


def _settings(
    method: Method,
    adapters: Sequence[Adapter],
    weights: Sequence[Setting],
    params: Mapping[str, Setting],
) -> Settings:
    """Checked in every module."""
    modules = sorted({name for adapter in adapters for name in adapter.modules})
    settings = make_settings(weights, params, modules)
    for module in modules:
        method.validate(settings.params_of(module))
        values = settings.weights_of(module)
        if method.normalize and min(values) < 0:
            raise GamMergeError(
                f"weights {list(values)} of module {module} are negative; {method.name} takes a mean"
            )
        if settings.params_of(module).get("scope") == "global" and values != settings.weights_of(
            modules[0]
        ):
            raise GamMergeError(
                f"weights differ from module to module, and {method.name} with scope=global takes one"
            )
    return settings


def _anchor_position(
    anchor: int | str, sources: Sequence[Source], weights: Sequence[Setting]
) -> int:
    names = [source.source if isinstance(source, Adapter) else str(source) for source in sources]
    if isinstance(anchor, str) and anchor in names:
        anchor = names.index(anchor)
    elif isinstance(anchor, str) and anchor.isdecimal():
        anchor = int(anchor)
    if isinstance(anchor, str) or not 0 <= anchor < len(names):
        mean = "; -p anchor=mean aligns gam to their mean" if anchor == "mean" else ""
        raise GamMergeError(
            f"anchor {anchor!r} is none of the adapters; give a position from 0 or one of {names}{mean}"
        )
    if weights[anchor] == 0:
        if len(weights) > 1 and anchor == 0:  # the default: the first that takes part
            return next(i for i, weight in enumerate(weights) if weight != 0)
        raise GamMergeError(f"anchor {names[anchor]} has weight zero; choose another")
    return anchor


def _check_missing(missing: str) -> Literal["zero", "skip"]:
    if missing not in ("zero", "skip"):
        raise GamMergeError(
            f"missing = {missing!r}: a module that an adapter lacks counts as 'zero' or is left out, 'skip'"
        )
    return missing  # type: ignore[return-value]


def record(planned: MergePlan) -> Record:
    """What a planned merge will have been made of."""
    job, plan, base = planned.job, planned.plan, planned.base.place if planned.base else None
    return Record(
        method=job.method.name,
        params=job.method.validate({}) | dict(job.settings.params),
        sources=tuple(map(_recorded, plan.adapters, job.settings.weights)),
        anchor=job.anchor,
        missing=job.missing,
        allow_base_mismatch=len({adapter.base_model for adapter in plan.adapters} - {None}) > 1,
        base=base.absolute() if isinstance(base, Path) else base,
        output=_output(planned),
    )


def _output(planned: MergePlan) -> dict[str, Any]:
    policy, job = planned.policy, planned.job
    ranks: dict[str, Any] = {"rank": planned.plan.rank}
    if policy.looks:
        ranks = {"rank": policy.rank, "energy": policy.energy, "max_rank": policy.max_rank}
        ranks["per_module_rank"] = policy.per_module
    flatten = {"flatten_dora": True} if job.flatten else {}
    return {**ranks, **flatten, "dtype": dtype_name(job.dtype)}


def _recorded(adapter: Adapter, weight: Setting) -> RecordedSource:
    return RecordedSource(
        source=adapter.source,
        weight=weight,
        rank=adapter.rank,
        alpha=adapter.config.get("lora_alpha"),
        given=adapter.given,
        file=adapter.file,
        version=adapter.version,
        revision=adapter.revision,
        made_by=adapter.made_by,
    )
