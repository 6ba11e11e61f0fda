"""``merge``: the one function that does the whole job."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gam_merge._common.files import check_unchanged, sha256_of
from gam_merge._common.tensors import LazyTensor, MemoryTensor, PromisedTensor, dtype_name
from gam_merge._common.types import Progress, Setting
from gam_merge._lineup.lineup import Plan
from gam_merge._lineup.ranks import with_ranks
from gam_merge._lineup.serving import check_target
from gam_merge._load import Source, load
from gam_merge._plan import BaseModel, MergePlan, plan, record
from gam_merge._push import push
from gam_merge._read.adapter import Adapter, Extra, LoraModule
from gam_merge._read.peft import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    extra_key,
    factor_keys,
    magnitude_key,
    merged_config,
)
from gam_merge._read.record import Record
from gam_merge._read.safetensors import TensorSpec
from gam_merge._run.engine import Sink, run, run_extras
from gam_merge._run.report import MergeReport
from gam_merge._run.survey import needed_ranks, survey
from gam_merge._write.adapter import (
    CARD_NAME,
    RECIPE_NAME,
    REPORT_NAME,
    AdapterWriter,
    as_json,
    save_adapter,
)
from gam_merge._write.card import card_text
from gam_merge._write.directory import check_output
from gam_merge._write.provenance import METHOD_KEY, ORIGINS_KEY, origins_text, recipe_text


@dataclass(frozen=True)
class MergeResult:
    """A merged adapter, in memory or on disk, and what the merge did."""

    adapter: Adapter
    report: MergeReport
    record: Record
    path: Path | None = None

    def save(self, path: str | PathLike[str], *, force: bool = False) -> Path:
        """Write the adapter directory that PEFT loads, with the report and the recipe: whole or not at all.

        An existing ``path`` is an error; ``force`` replaces it if it is empty or an earlier merge.
        """
        check_output(Path(path), force=force)
        texts = partial(_texts, self.adapter.config, self.report, self.record, Path(path))
        return save_adapter(Path(path), self.adapter, _metadata(self.record), texts, force=force)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Merged LoRA adapter",
    ) -> str:
        """Upload to the Hub as ``push`` does; the URL of the commit. A result in memory is written to a temporary
        directory first, which stays if the upload fails. Raises GamMergeError."""
        directory = self.path or self.save(Path(tempfile.mkdtemp(prefix="gam-merge-")) / "merged")
        url = push(
            directory,
            repo,
            private=private,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
        )
        if self.path is None:
            shutil.rmtree(directory.parent)
        return url


def merge(
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
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge LoRA adapters into one.

    sources: what ``load`` takes, at least one. weights: one a source, not negative, normalised here; equal by
    default. params: of the method, by name. A weight or a parameter is one value, or a list of numbers that is spread
    over the depth of the model, or a list of ``{"filter": "*.mlp.*", "value": ...}``. anchor: the source that ``gam``
    aligns the others to, by position or as given in ``sources``. missing: what a module counts as that an adapter
    lacks, "zero", or not at all, "skip"; what is trained beside the factors is averaged over the adapters that have it.
    rank, dtype: of the output, by default the largest rank and the narrowest dtype that holds all sources. energy: the
    share of each module's squared norm to keep instead, in one rank for all, or each in its own with per_module_rank;
    max_rank: at most so many. target: "vllm" or "llama.cpp" refuses what that does not serve, and says what to change.
    base_model, alpha: for bare files without a config; alpha one for all or one a source. DoRA adapters need base_model
    as a directory or a file of safetensors, or as a Hub id, of which the files that hold their modules are fetched into
    the cache of huggingface_hub; they become DoRA again, or with flatten_dora the nearest plain LoRA. executor: any
    concurrent.futures.Executor runs the chunks, for instance that of a Dask client; threads of this process by
    default; same bytes with any. progress: called with (modules done, in all).

    With ``out`` the adapter is streamed to that directory; without it the result stays in memory until ``save``.
    ``force`` replaces an ``out`` that is empty or an earlier merge.

    Raises GamMergeError, and then nothing is written.
    """
    planned = plan(
        sources,
        method=method,
        weights=weights,
        out=out,
        anchor=anchor,
        rank=rank,
        energy=energy,
        max_rank=max_rank,
        per_module_rank=per_module_rank,
        target=target,
        dtype=dtype,
        device=device,
        base_model=base_model,
        alpha=alpha,
        allow_base_mismatch=allow_base_mismatch,
        missing=missing,
        flatten_dora=flatten_dora,
        params=params,
        force=force,
    )
    planned, summary = settle(planned, executor)
    run = partial(_run, planned, summary, executor, progress)
    return _in_memory(planned, run) if out is None else _to_disk(planned, run, Path(out), force)


def settle(planned: MergePlan, executor: Executor | None = None) -> tuple[MergePlan, Any]:
    """What a merge must know of all deltas before it writes the first: its ranks, and the summary of the method.

    Reads the tensors once more for each. Raises GamMergeError.
    """
    lined_up, job, policy = planned.plan, planned.job, planned.policy
    summary = survey(lined_up, job, executor)
    if not policy.looks:
        return planned, summary
    share = 1.0 if policy.energy is None else policy.energy
    needed = needed_ranks(lined_up, job, share, summary=summary, executor=executor)
    settled = with_ranks(lined_up, needed, per_module=policy.per_module)
    check_target(settled, planned.target)
    return replace(planned, plan=settled), summary


class _Memory(dict[str, Tensor]):
    """A sink that keeps what it is given."""

    def write(self, key: str, value: Tensor) -> None:
        self[key] = value.clone()


def _in_memory(planned: MergePlan, run: Callable[[Sink], MergeReport]) -> MergeResult:
    plan, memory, made_by = planned.plan, _Memory(), record(planned)
    report = run(memory)
    adapter = _merged_adapter(plan, {key: MemoryTensor(value) for key, value in memory.items()})
    return MergeResult(
        replace(adapter, made_by=made_by if made_by.repeatable else None), report, made_by
    )


def promised_adapter(plan: Plan) -> Adapter:
    """The adapter that a merge would make: shapes without values, for plans of merges of merges."""
    return _merged_adapter(
        plan, {spec.key: PromisedTensor(spec.shape, spec.dtype) for spec in _specs(plan)}
    )


def _merged_adapter(plan: Plan, tensors: Mapping[str, LazyTensor]) -> Adapter:
    """The adapter that holds the tensors of a merge, by their keys in a file."""
    modules: dict[str, LoraModule] = {}
    for name, layout in sorted(plan.layouts.items()):
        a, b = (tensors[key] for key in factor_keys(name, layout))
        modules[name] = LoraModule(name, a, b, 1.0, layout, tensors.get(magnitude_key(name)))
    extras: dict[str, Extra] = {}
    for extra in plan.written_extras:
        extras[extra.name] = Extra(
            extra.name, extra.kind, tensors[extra_key(extra.name, extra.kind, modules)]
        )
    return Adapter("merged", modules, plan.base_model, _config(plan), extras)


def _to_disk(
    planned: MergePlan, run: Callable[[Sink], MergeReport], out: Path, force: bool
) -> MergeResult:
    plan, made_by = planned.plan, record(planned)
    with (
        AdapterWriter(out, _specs(plan), _metadata(made_by, known=False), force=force) as writer,
        ThreadPoolExecutor(1, "gam-merge-aside") as aside,
    ):
        metadata = aside.submit(_metadata, made_by)  # reads every source once more
        report = run(writer)
        digest = writer.finish(metadata.result())
        writer.commit(_texts(_config(plan), report, made_by, out, digest))
    return MergeResult(load(out), report, made_by, out)


def _texts(
    config: Mapping[str, Any], report: MergeReport, made_by: Record, home: Path, weights: str
) -> dict[str, str]:
    """What stands beside the weights, the config last. weights: their sha256."""
    config_text = as_json(config, sort=True)
    files = {WEIGHTS_NAME: weights, CONFIG_NAME: sha256_of(config_text)}
    return {
        CARD_NAME: card_text(config, report, made_by, files),
        REPORT_NAME: as_json(report.to_dict()),
        RECIPE_NAME: recipe_text(made_by, home, files),
        CONFIG_NAME: config_text,
    }


def _specs(plan: Plan) -> list[TensorSpec]:
    specs: list[TensorSpec] = []
    for bucket in plan.buckets:
        b, a = bucket.layout.join_shapes(*bucket.shape, bucket.output_rank)
        for name in bucket.names:
            key_a, key_b = factor_keys(name, bucket.layout)
            specs += [TensorSpec(key_a, a, plan.dtype), TensorSpec(key_b, b, plan.dtype)]
            if plan.magnitude_dtype is not None:
                shape = bucket.layout.magnitude_shape(bucket.shape[0])
                specs.append(TensorSpec(magnitude_key(name), shape, plan.magnitude_dtype))
    for extra in plan.written_extras:
        specs.append(
            TensorSpec(extra_key(extra.name, extra.kind, plan.layouts), extra.shape, extra.dtype)
        )
    return specs


def _config(plan: Plan) -> dict[str, Any]:
    kinds = {extra.kind for extra in plan.extras}
    configs, dora = [adapter.config for adapter in plan.adapters], plan.magnitude_dtype is not None
    whole = all(name in plan.layouts for adapter in plan.adapters for name in adapter.modules)
    return merged_config(configs, plan.layouts, kinds, plan.ranks, dora=dora, whole=whole)


def _run(
    planned: MergePlan,
    summary: Any,
    executor: Executor | None,
    progress: Progress | None,
    sink: Sink,
) -> MergeReport:
    plan, job = planned.plan, planned.job
    modules = run(plan, job, sink, summary=summary, executor=executor, progress=progress)
    run_extras(plan, job, sink)
    for adapter in plan.adapters:
        if adapter.file and adapter.version:
            check_unchanged(adapter.file, adapter.version)
    report = MergeReport(
        method=job.method.name,
        sources=tuple(adapter.source for adapter in plan.adapters),
        weights=job.mean_weights(plan.names),
        anchor=job.anchor,
        rank=plan.rank,
        dtype=dtype_name(job.dtype),
        modules=modules,
        params=job.method.validate({}) | dict(job.settings.params),
        extras=dict(Counter(extra.kind for extra in plan.written_extras)),
        notes=planned.notes,
    )
    return (
        replace(report, notes=(*report.notes, *_erased(report))) if job.method.normalize else report
    )


def _erased(report: MergeReport) -> Iterator[str]:
    """A word where a method that should average lost most of what averaging keeps: of an adapter that shares nothing
    with the others, the mean keeps its weight."""
    if len(report.sources) > 1 and all(
        s < w / 2 for s, w in zip(report.survival, report.weights, strict=True)
    ):
        most = max(report.survival)
        yield (
            f"{report.method} keeps at most {most:.0%} of each adapter: they share few directions, and what one has "
            "alone is filtered out; mean keeps its weight (gam-merge compare says more)"
        )


def _metadata(made_by: Record, *, known: bool = True) -> dict[str, str]:
    """Of the weights. Of the same length while the digests of the sources are not ``known``."""
    return {METHOD_KEY: made_by.method, ORIGINS_KEY: origins_text(made_by, known=known)}
