"""``plan``: a merge as asked for -> what to do and how. Every check that needs no tensor."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import dtype_name, parse_dtype, pick_device
from gam_merge._common.types import Setting
from gam_merge._lineup.lineup import Lineup, LineupBucket, line_up
from gam_merge._lineup.names import bring_together, check_shared, shared_modules
from gam_merge._lineup.options import (
    MergeOptions,
    Request,
    Target,
    explicit,
)
from gam_merge._lineup.ranks import RankPolicy
from gam_merge._lineup.request import anchor_position, check_missing, weights_of
from gam_merge._lineup.serving import check_target, rank_notes
from gam_merge._lineup.settings import Settings, make_settings
from gam_merge._load import Source, load_all
from gam_merge._methods import Method, get_method
from gam_merge._methods._rule import Choice
from gam_merge._models.base import resolve_base
from gam_merge._models.checkpoint import Model
from gam_merge._models.placement import base_weights
from gam_merge._read.adapter import Adapter
from gam_merge._read.formats import output_format
from gam_merge._read.record import Record
from gam_merge._read.weight import BaseWeight
from gam_merge._run.choice import decided, sample
from gam_merge._run.dora import base_weights_needed, check_dora
from gam_merge._run.estimate import Estimate, estimate
from gam_merge._run.job import Job
from gam_merge._translate.base import BaseConfig
from gam_merge._translate.translate import together
from gam_merge._write.output import check_output
from gam_merge._write.record import record


@dataclass(frozen=True)
class MergePlan:
    """A planned merge: the modules to merge, and how.

    Attributes:
        lineup: the modules of all adapters, in buckets.
        job: method, settings, device and dtype.
        policy: for ranks that only a pass over the deltas can tell.
        target: the server that the merge is for.
        base: the base model whose weights are read, for DoRA.
        base_config: the config of the base model that the user named, read where names depend on
            it.
        choice: the method that was chosen and why, where a method chooses; None until the merge has
            read some of the tensors.

    Example:
        >>> sources = ["examples/adapters/addition", "examples/adapters/sorting"]
        >>> planned = gm.plan(sources, method="ties", rank=16)
        >>> planned.rank, planned.dtype, len(planned.modules)
        (16, 'bfloat16', 210)
        >>> planned.estimate().seconds < 60
        True
    """

    lineup: Lineup
    job: Job
    policy: RankPolicy = field(default_factory=RankPolicy)
    target: Target | None = None
    base: Model | None = None
    base_config: BaseConfig | None = None
    choice: Choice | None = None

    @property
    def method(self) -> str:
        """The method, with its space and plug-ins."""
        return self.job.method.name

    @property
    def base_model(self) -> str | None:
        """The base model of the adapters, if that is known."""
        return self.lineup.base_model

    @property
    def extras(self) -> Mapping[str, int]:
        """How many tensors of each kind will be written that are not factors."""
        return Counter(extra.kind for extra in self.lineup.written_extras)

    @property
    def modules(self) -> list[str]:
        """The modules of the merge, sorted."""
        return self.lineup.names

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters that take part."""
        return self.lineup.adapters

    @property
    def shared(self) -> int:
        """How many modules all adapters have."""
        return shared_modules(self.adapters)

    @property
    def buckets(self) -> tuple[LineupBucket, ...]:
        """The modules by shape, layout, adapters and ranks."""
        return self.lineup.buckets

    @property
    def rank(self) -> int:
        """The rank of the output, or an upper limit if it follows from an energy."""
        return self.lineup.rank

    @property
    def dtype(self) -> str:
        """The dtype of the output."""
        return dtype_name(self.job.dtype)

    @property
    def nbytes(self) -> int:
        """The size of the output in bytes."""
        return self.lineup.nbytes

    @property
    def weights(self) -> tuple[float, ...]:
        """The mean weight of each adapter over the modules."""
        return self.job.mean_weights(self.lineup.names)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, before the merge.

        Raises GamMergeError if the target does not serve the merge.
        """
        on_base = self.base.notes if self.base else ()
        on_target = check_target(self.lineup, self.target)
        notes = (*self.lineup.notes, *rank_notes(self.lineup), *on_base, *on_target)
        return (*notes, *self._anchor_notes())

    def _anchor_notes(self) -> tuple[str, ...]:
        """Say so if an anchor other than the default has no effect."""
        job = self.job
        if job.anchor == 0 or any(job.method.takes_anchor(job.params_of(n)) for n in self.modules):
            return ()
        method = self.choice.by if self.choice else self.method
        source = self.adapters[job.anchor].source
        return (f"anchor {source} has no effect on {method}; gam with anchor=adapter aligns to it",)

    @property
    def pending(self) -> str | None:
        """What the method will choose between once tensors are read, if it chooses."""
        if not self.job.method.chooses:
            return None
        looks = f"a look at {len(sample(self.lineup).names)} of {len(self.modules)} modules"
        return f"{self.method} will take {self.job.method.summary}: decided by {looks}"

    def decided(self, choice: Choice) -> "MergePlan":
        """Return the plan by the method that was chosen.

        The rank of the plan stays an upper limit, whatever the rank of that method's own results.
        """
        policy, lineup, job = self.policy, self.lineup, decided(self.job, choice)
        if policy.rank is None:
            policy = replace(policy, max_rank=self.rank)
        if lineup.format.mixed_ranks:
            lineup = policy.before_reading(lineup, job.method.rank)
        return replace(self, lineup=lineup, job=job, policy=policy, choice=choice)

    def estimate(self) -> Estimate:
        """Estimate time and memory of the merge, from a one-second trial run on random data.

        Returns:
            Estimate: seconds and bytes. No tensor of the adapters is read.
        """
        job = self.job
        if job.method.chooses:
            job = decided(job, job.method.choose(None))
        return estimate(self.lineup, job)

    def record(self) -> Record:
        """Return what the merge will have been made of."""
        place = self.base_config.place if self.base_config else None
        if self.base:
            place = self.base.place
        return record(self.lineup, self.job, self.policy, place)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "method": self.method,
            "params": dict(self.job.settings.params),
            "sources": [adapter.source for adapter in self.adapters],
            "weights": list(self.weights),
            "anchor": self.job.anchor,
            "missing": self.job.missing,
            "shared": self.shared,
            "base_model": self.base_model,
            "device": str(self.job.device),
            "rank": self.rank,
            "energy": self.policy.energy,
            "per_module_rank": self.policy.per_module,
            "dtype": self.dtype,
            "format": self.lineup.format.name,
            "nbytes": self.nbytes,
            "pending": self.pending,
            "notes": list(self.notes),
            "buckets": [_bucket_dict(bucket) for bucket in self.buckets],
        }


def _bucket_dict(bucket: LineupBucket) -> dict[str, Any]:
    return {
        "shape": bucket.shape,
        "adapters": bucket.adapters,
        "ranks": bucket.ranks,
        "modules": bucket.names,
    }


@explicit()
def plan(
    sources: Sequence[Source],
    *,
    out: str | PathLike[str] | None = None,
    force: bool = False,
    **options: Unpack[MergeOptions],
) -> MergePlan:
    """Say what ``merge`` would do with the same arguments.

    From headers alone: no tensor is read, nothing is written.

    Args:
        sources: directories, files, Hub ids or adapters in memory; see ``load``.
        out: the directory that would be written.
        force: check ``out`` as ``merge(force=True)`` would.

    Returns:
        MergePlan: modules, ranks, dtype, size and notes; ``estimate()`` adds time and memory.

    Raises:
        GamMergeError: wherever ``merge`` would before it reads the first tensor.

    Example:
        >>> sources = ["examples/adapters/addition", "examples/adapters/sorting"]
        >>> planned = gm.plan(sources, method="tsvm")
        >>> planned.rank, planned.nbytes
        (16, 9768960)
    """
    request = Request(**options)
    method = get_method(request.method)
    policy = RankPolicy(request.rank, request.energy, request.max_rank, request.per_module_rank)
    policy.check()
    check_missing(request.missing)
    adapters = load_all(sources, request.base_model, request.alpha)
    form = output_format(request.format, adapters, out)
    base_config: BaseConfig | None = None
    if isinstance(request.base_model, str | PathLike):
        base_config = BaseConfig(str(request.base_model))
    adapters = together(adapters, form, base_config)
    weights = weights_of(request.weights, len(adapters))
    anchor = anchor_position(request.anchor, list(map(_source_name, sources)), weights)
    kept = [i for i, weight in enumerate(weights) if weight != 0]
    method.check_count(len(kept))
    kept_adapters = bring_together([adapters[i] for i in kept])
    check_shared(kept_adapters, request.missing)
    kept_weights = [weights[i] for i in kept]
    settings = _settings(method, kept_adapters, kept_weights, request.params or {})
    lineup = line_up(
        kept_adapters,
        settings=settings,
        dtype=parse_dtype(request.dtype),
        allow_base_mismatch=request.allow_base_mismatch,
        form=form,
    )
    lineup = policy.before_reading(lineup, method.rank)
    job = Job(
        settings=settings,
        method=method,
        anchor=kept.index(anchor),
        missing=request.missing or "zero",
        dtype=lineup.dtype,
        device=pick_device(request.device),
        flatten_dora=request.flatten_dora,
    )
    if out is not None:
        files = [adapter.file for adapter in adapters if adapter.file is not None]
        check_output(Path(out), force=force, sources=files)
    base: Model | None = None
    if any(adapter.is_dora for adapter in lineup.adapters):
        lineup, base = _with_base(lineup, request, policy)
    if not policy.needs_spectra:
        check_target(lineup, request.target)
    lineup.promised()  # an error for what the format cannot hold
    return MergePlan(lineup, job, policy, request.target, base, base_config)


def _with_base(lineup: Lineup, request: Request, policy: RankPolicy) -> tuple[Lineup, Model | None]:
    """Return the lineup with the base weights that DoRA needs, and the model that they are of."""
    base = request.base_model
    if base is None:
        raise base_weights_needed(lineup.adapters)
    if request.flatten_dora and policy.needs_spectra:
        raise GamMergeError(
            "DoRA is flattened to a given rank; give rank or max_rank instead of energy"
        )
    check_dora(lineup.adapters)
    model: Model | None = None
    weights: dict[str, BaseWeight] = {}
    if isinstance(base, Mapping):
        weights |= base
        missing = [name for name in lineup.names if name not in weights]
        if missing:
            raise GamMergeError(
                f"base_model must hold the weight of every module, got none for {missing[0]}"
            )
    else:
        model = resolve_base(base)
        for adapter in lineup.adapters:
            weights |= base_weights(model, adapter)
    buckets: list[LineupBucket] = []
    for bucket in lineup.buckets:
        bases = tuple(weights[name] for name in bucket.names)
        buckets.append(replace(bucket, bases=bases))
    dtype = None if request.flatten_dora else _magnitude_dtype(lineup, request)
    return replace(lineup, buckets=tuple(buckets), magnitude_dtype=dtype), model


def _magnitude_dtype(lineup: Lineup, request: Request) -> torch.dtype:
    """Return the dtype of the output if one was asked for, else the narrowest that holds all."""
    dtype = parse_dtype(request.dtype)
    if dtype is not None:
        return dtype
    stored: list[torch.dtype] = []
    for adapter in lineup.adapters:
        for module in adapter.modules.values():
            if module.magnitude is not None:
                stored.append(module.magnitude.dtype)
    return reduce(torch.promote_types, stored)


def _settings(
    method: Method,
    adapters: Sequence[Adapter],
    weights: Sequence[Setting],
    params: Mapping[str, Setting],
) -> Settings:
    """Return weights and parameters, after they were checked for every module."""
    modules = sorted(set().union(*(adapter.modules for adapter in adapters)))
    settings = make_settings(weights, params, modules)
    for module in modules:
        module_params = method.validate(settings.params_of(module))
        values = settings.weights_of(module)
        if method.normalize and min(values) < 0:
            raise GamMergeError(
                f"weights must not be negative, since {method.name} takes a mean, got "
                f"{list(values)} for module {module}"
            )
        one_weight = method.takes_one_weight(module_params)
        if one_weight and values != settings.weights_of(modules[0]):
            raise GamMergeError(
                f"{method.name} with scope=global takes one weight per adapter, but they differ "
                "from module to module"
            )
    return settings


def _source_name(source: Source) -> str:
    return source.source if isinstance(source, Adapter) else str(source)
