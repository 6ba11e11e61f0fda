"""``merge``: the one function that does the whole job."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gam_merge._adapter import Adapter, LoraModule
from gam_merge._engine import Job, Progress, run
from gam_merge._errors import GamMergeError
from gam_merge._export import AdapterWriter, check_output
from gam_merge._formats.peft import factor_keys, merged_config
from gam_merge._methods import get_method
from gam_merge._plan import Plan, make_plan
from gam_merge._report import MergeReport, ModuleReport
from gam_merge._safetensors import TensorSpec
from gam_merge._sources import Source, load
from gam_merge._tensors import LazyTensor, MemoryTensor, read

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float32": torch.float32,
    "fp32": torch.float32,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class MergeResult:
    """A merged adapter, in memory or on disk, and what the merge did."""

    adapter: Adapter
    report: MergeReport
    path: Path | None = None

    def save(self, path: str | PathLike[str], *, force: bool = False) -> Path:
        """Write the adapter directory that PEFT loads: whole or not at all.

        An existing ``path`` is an error; ``force`` replaces it if it is empty or an earlier merge.
        """
        tensors = _tensors(self.adapter)
        specs = [TensorSpec(key, tensor.shape, tensor.dtype) for key, tensor in tensors.items()]
        with AdapterWriter(Path(path), specs, _metadata(self.report.method), force=force) as writer:
            for key, tensor in tensors.items():
                writer.write(key, read(tensor))
            writer.commit(self.adapter.config, self.report.to_dict())
        return Path(path)


def merge(
    sources: Sequence[Source],
    *,
    method: str = "gam",
    weights: Sequence[float] | None = None,
    out: str | PathLike[str] | None = None,
    anchor: int | str = 0,
    rank: int | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "auto",
    base_model: str | None = None,
    alpha: float | Sequence[float] | None = None,
    allow_base_mismatch: bool = False,
    force: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge LoRA adapters into one.

    sources: what ``load`` takes, at least one. weights: one a source, not negative, normalised here; equal by
    default. anchor: the source that ``gam`` aligns the others to, by position or as given in ``sources``. rank, dtype:
    of the output, by default the largest rank and the narrowest dtype that holds all sources. base_model, alpha: for
    bare files without a config; alpha one for all or one a source. executor: any concurrent.futures.Executor runs the
    chunks, for instance that of a Dask client; threads of this process by default; same bytes with any. progress:
    called with (modules done, in all).

    With ``out`` the adapter is streamed to that directory; without it the result stays in memory until ``save``.

    Raises GamMergeError, and then nothing is written.
    """
    chosen = get_method(method)
    adapters = _load_all(sources, base_model, alpha)
    shares = _check_weights(weights, len(adapters))
    position = _anchor_position(anchor, sources, shares)
    kept = [i for i, share in enumerate(shares) if share > 0]
    plan = make_plan(
        [adapters[i] for i in kept],
        rank=_check_rank(rank),
        dtype=parse_dtype(dtype),
        allow_base_mismatch=allow_base_mismatch,
    )
    job = Job(
        weights=tuple(shares[i] for i in kept),
        method=chosen,
        anchor=kept.index(position),
        rank=plan.rank,
        dtype=plan.dtype,
        device=_pick_device(device),
    )
    if out is None:
        return _merge_in_memory(plan, job, executor, progress)
    return _merge_to_disk(plan, job, Path(out), force, executor, progress)


class _Memory(dict[str, Tensor]):
    """A sink that keeps what it is given."""

    def write(self, key: str, value: Tensor) -> None:
        self[key] = value.clone()


def _merge_in_memory(plan: Plan, job: Job, executor: Executor | None, progress: Progress | None) -> MergeResult:
    memory = _Memory()
    report = _report(plan, job, run(plan, job, memory, executor=executor, progress=progress))
    modules: dict[str, LoraModule] = {}
    for name in plan.names:
        a, b = (MemoryTensor(memory[key]) for key in factor_keys(name))
        modules[name] = LoraModule(name, a, b, 1.0)
    return MergeResult(Adapter("merged", modules, plan.base_model, _config(plan)), report)


def _merge_to_disk(
    plan: Plan, job: Job, out: Path, force: bool, executor: Executor | None, progress: Progress | None
) -> MergeResult:
    check_output(out, force=force)
    for source in (Path(adapter.source) for adapter in plan.adapters):
        if out.exists() and source.exists() and _holds(out, source):
            raise GamMergeError(f"{out}: is a source of this merge; choose another output")
    with AdapterWriter(out, _specs(plan), _metadata(job.method.name), force=force) as writer:
        report = _report(plan, job, run(plan, job, writer, executor=executor, progress=progress))
        writer.commit(_config(plan), report.to_dict())
    return MergeResult(load(out), report, out)


def _load_all(
    sources: Sequence[Source], base_model: str | None, alpha: float | Sequence[float] | None
) -> list[Adapter]:
    if isinstance(sources, str | PathLike):
        raise GamMergeError("sources is one path; give a list of adapters")
    if not sources:
        raise GamMergeError("no adapters to merge")
    alphas = list(alpha) if isinstance(alpha, Sequence) else [alpha] * len(sources)
    if len(alphas) == 1:
        alphas *= len(sources)
    if len(alphas) != len(sources):
        raise GamMergeError(f"{len(alphas)} alphas for {len(sources)} adapters; give one, or one for each")
    return [load(source, base_model=base_model, alpha=a) for source, a in zip(sources, alphas, strict=True)]


def _check_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1.0 / count] * count
    if len(weights) != count:
        raise GamMergeError(f"{len(weights)} weights for {count} adapters; give one for each")
    if not all(isfinite(w) and w >= 0 for w in weights) or not sum(weights) > 0:
        raise GamMergeError(f"weights {list(weights)} are not finite, not negative, and not all zero")
    return [w / sum(weights) for w in weights]


def _anchor_position(anchor: int | str, sources: Sequence[Source], weights: Sequence[float]) -> int:
    names = [source.source if isinstance(source, Adapter) else str(source) for source in sources]
    if isinstance(anchor, str) and anchor in names:
        anchor = names.index(anchor)
    elif isinstance(anchor, str) and anchor.isdecimal():
        anchor = int(anchor)
    if isinstance(anchor, str) or not 0 <= anchor < len(names):
        raise GamMergeError(f"anchor {anchor!r} is none of the adapters; give a position from 0 or one of {names}")
    if weights[anchor] == 0:
        if len(weights) > 1 and anchor == 0:  # the default: the first that takes part
            return next(i for i, weight in enumerate(weights) if weight > 0)
        raise GamMergeError(f"anchor {names[anchor]} has weight zero; choose another")
    return anchor


def _check_rank(rank: int | None) -> int | None:
    if rank is not None and rank < 1:
        raise GamMergeError(f"rank {rank} is not positive")
    return rank


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype of that name. Raises GamMergeError."""
    if dtype is None or dtype in _DTYPES.values():
        return dtype  # type: ignore[return-value]
    if dtype not in _DTYPES:
        raise GamMergeError(f"dtype {dtype!r} is not one of: {', '.join(_DTYPES)}")
    return _DTYPES[str(dtype)]


def _pick_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise GamMergeError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return chosen


def _specs(plan: Plan) -> list[TensorSpec]:
    specs: list[TensorSpec] = []
    for bucket in plan.buckets:
        rows, columns = bucket.shape
        for name in bucket.names:
            key_a, key_b = factor_keys(name)
            specs.append(TensorSpec(key_a, (plan.rank, columns), plan.dtype))
            specs.append(TensorSpec(key_b, (rows, plan.rank), plan.dtype))
    return specs


def _config(plan: Plan) -> dict[str, Any]:
    return merged_config(plan.adapters, plan.names, plan.rank)


def _report(plan: Plan, job: Job, modules: tuple[ModuleReport, ...]) -> MergeReport:
    return MergeReport(
        method=job.method.name,
        sources=tuple(adapter.source for adapter in plan.adapters),
        weights=job.weights,
        anchor=job.anchor,
        rank=job.rank,
        dtype=str(job.dtype).removeprefix("torch."),
        modules=modules,
    )


def _metadata(method: str) -> Mapping[str, str]:
    return {"gam_merge.method": method}


def _tensors(adapter: Adapter) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    for name, module in adapter.modules.items():
        key_a, key_b = factor_keys(name)
        tensors[key_a], tensors[key_b] = module.a, module.b
    return tensors


def _holds(out: Path, source: Path) -> bool:
    """Whether ``out`` is the source's directory, or holds it."""
    return out.resolve() in (source.resolve(), *source.resolve().parents)
