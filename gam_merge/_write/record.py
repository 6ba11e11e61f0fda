"""The record of a merge, from its lineup and its job: every default filled in."""

from pathlib import Path
from typing import Any

from gam_merge._common.tensors import dtype_name
from gam_merge._common.types import Setting
from gam_merge._lineup.lineup import Lineup
from gam_merge._lineup.ranks import RankPolicy
from gam_merge._read.adapter import Adapter
from gam_merge._read.base_name import common_name
from gam_merge._read.hub_id import HubId
from gam_merge._read.record import Record, RecordedSource
from gam_merge._run.job import Job


def record(lineup: Lineup, job: Job, policy: RankPolicy, base: Path | HubId | None) -> Record:
    """Return what a planned merge will have been made of.

    base: where the base model is read: its weights for DoRA, its config for a translation.
    """
    base_models = [adapter.base_model for adapter in lineup.adapters]
    return Record(
        method=job.method.name,
        params=job.method.validate({}) | dict(job.settings.params),
        sources=tuple(map(_recorded, lineup.adapters, job.settings.weights)),
        anchor=job.anchor,
        missing=job.missing,
        allow_base_mismatch=any(base_models) and common_name(base_models) is None,
        base=base.absolute() if isinstance(base, Path) else base,
        output=_recorded_output(lineup, job, policy),
    )


def _recorded_output(lineup: Lineup, job: Job, policy: RankPolicy) -> dict[str, Any]:
    output: dict[str, Any] = {"rank": lineup.rank}
    if policy.needs_spectra or lineup.format.mixed_ranks:
        sizes = {"rank": policy.rank, "energy": policy.energy, "max_rank": policy.max_rank}
        output = {name: size for name, size in sizes.items() if size is not None}
        output["per_module_rank"] = policy.per_module
    if job.flatten_dora:
        output["flatten_dora"] = True
    return {**output, "format": lineup.format.name, "dtype": dtype_name(job.dtype)}


def _recorded(adapter: Adapter, weight: Setting) -> RecordedSource:
    given = dict(adapter.given)
    if "alpha" in given:
        given["alpha"] = float(given["alpha"])  # as it comes back from a recipe
    return RecordedSource(
        source=adapter.source,
        weight=weight,
        rank=adapter.rank,
        alpha=adapter.alpha,
        given=given,
        file=adapter.file,
        version=adapter.version,
        config_file=adapter.config_file,
        config_version=adapter.config_version,
        revision=adapter.revision,
        made_by=adapter.made_by,
    )
