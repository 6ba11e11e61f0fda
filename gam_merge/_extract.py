"""``extract``: what fine-tuning changed in a model, as an adapter of low rank, from the two models on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import hypot
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._common.random import generator
from gam_merge._common.tensors import MemoryTensor, parse_dtype
from gam_merge._common.types import Progress
from gam_merge._lineup.ranks import RankPolicy
from gam_merge._models.checkpoint import Checkpoint, is_conv1d, open_checkpoint
from gam_merge._models.difference import Factored, difference, distance, factorize
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._read.formats import format_of
from gam_merge._write.adapter import EXTRACT_REPORT_NAME, as_json, config_files, save_adapter
from gam_merge._write.directory import check_output
from gam_merge._write.provenance import METHOD_KEY

_LARGEST_RANK = 512  # where energy alone is asked for: what servers of LoRA take
# Weights (out, in) in numbered layers that are no linear layer, or none that PEFT can adapt.
_NOT_LINEAR = {"gate", "router", "relative_attention_bias", "embed_tokens", "wte", "wpe"}


@dataclass(frozen=True)
class ExtractedModule:
    """One module of the adapter.

    The residual is |difference - delta| / |difference| of the factors as they are written, measured, not estimated.
    """

    name: str
    shape: tuple[int, int]  # (out, in)
    rank: int
    norm: float  # |difference|
    residual: float


@dataclass(frozen=True)
class ExtractReport:
    """How much of the change from one model to the other is in the adapter.

    ``left_out`` has the norms of the changes that are not: of embeddings, norms, biases; None where there is nothing
    to compare, because the tensor is in one of the models alone or has another shape.
    """

    base: str
    tuned: str
    rank: int
    modules: tuple[ExtractedModule, ...]
    left_out: Mapping[str, float | None]

    @property
    def residual(self) -> float:
        """|difference - delta| / |difference| over all modules of the adapter."""
        norm = hypot(*(module.norm for module in self.modules))
        return hypot(*(module.norm * module.residual for module in self.modules)) / norm

    @property
    def energy_kept(self) -> float:
        """The share of the squared norm of all changes that the adapter holds."""
        change = sum(module.norm**2 for module in self.modules)
        return (
            change
            * (1 - self.residual**2)
            / (change + sum(norm**2 for norm in self.left_out.values() if norm))
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the totals first, then every module."""
        return {"residual": self.residual, "energy_kept": self.energy_kept, **asdict(self)}


@dataclass(frozen=True)
class ExtractResult:
    """An extracted adapter, in memory or on disk, and how much of the change it holds."""

    adapter: Adapter
    report: ExtractReport

    def save(self, path: str | PathLike[str], *, force: bool = False) -> Path:
        """Write the adapter directory that PEFT loads, with the report: whole or not at all.

        An existing ``path`` is an error; ``force`` replaces it if it is empty or one that we wrote.
        """
        texts = {EXTRACT_REPORT_NAME: as_json(self.report.to_dict()), **config_files(self.adapter)}
        return save_adapter(
            Path(path), self.adapter, {METHOD_KEY: "extract"}, lambda digest: texts, force=force
        )


def extract(
    base: str | PathLike[str],
    tuned: str | PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_rank: int | None = None,
    out: str | PathLike[str] | None = None,
    modules: Sequence[str] | None = None,
    base_model: str | None = None,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> ExtractResult:
    """The adapter that takes a model closest to another one, its linear layers one by one.

    base, tuned: directories that ``save_pretrained`` wrote in safetensors. rank: of every module. energy: the share of
    its squared norm that each difference keeps instead, in as few ranks as that takes, at most ``max_rank`` or else
    512; the adapter gets the largest of these ranks. modules: last parts of the names of the layers to take, by default
    all linear ones within numbered layers. base_model: what the adapter says it belongs to, by default ``base`` as
    given. dtype: of the adapter, by default that of each weight of ``tuned``. seed: of the sketches. progress: called
    with (tensors done, in all). In memory are one difference at a time, in float32, and the adapter.

    The error is within 1 % of the least that the rank allows, before rounding to ``dtype``. Raises GamMergeError for
    models that do not fit together or do not differ, and then nothing is written.
    """
    RankPolicy(rank, energy, max_rank).check()
    if rank is None and energy is None:
        raise GamMergeError(
            "how large an adapter? give --rank or --energy (rank= or energy= in Python)"
        )
    largest, target = rank or max_rank or _LARGEST_RANK, parse_dtype(dtype)
    first, second = open_checkpoint(base), open_checkpoint(tuned)
    if out is not None:
        check_output(Path(out), force=force, sources=[first.path, second.path])
    chosen = _linear_layers(first, second, modules)
    found: dict[str, Factored] = {}
    left_out: dict[str, float | None] = {}
    keys = sorted(first.tensors.keys() | second.tensors.keys())
    for done, key in enumerate(keys, 1):
        if name := chosen.get(key):
            before, after = first.tensors[key], second.tensors[key]
            factored = factorize(
                difference(after, before, transposed=is_conv1d(first, name)),
                rank=largest,
                energy=energy,
                dtype=target or after.dtype,
                random=generator(seed, name),
            )
            if factored is not None:
                found[name] = factored
        elif (change := _change(first, second, key)) != 0.0:
            left_out[key] = change
        if progress:
            progress(done, len(keys))
    if not found:
        raise GamMergeError(
            f"{base} and {tuned} do not differ in any of these layers; nothing to extract"
        )
    report = _report(str(base), str(tuned), found, left_out)
    result = ExtractResult(_adapter(first, base_model or str(base), found, report.rank), report)
    if out is not None:
        result.save(out, force=force)
    return result


def _linear_layers(
    base: Checkpoint, tuned: Checkpoint, modules: Sequence[str] | None
) -> dict[str, str]:
    """The weights to take, by key, and the names of their modules. Raises GamMergeError if the models do not fit."""
    chosen: dict[str, str] = {}
    for key, tensor in base.tensors.items():
        name, _, kind = key.rpartition(".")
        layers = name.split(".")
        usual = (
            any(part.isdecimal() for part in layers)
            and "experts" not in layers
            and layers[-1] not in _NOT_LINEAR
        )
        taken = usual if modules is None else layers[-1] in modules
        if taken and kind == "weight" and len(tensor.shape) == 2 and tensor.is_plain:
            chosen[key] = name
    for key in chosen:
        theirs = tuned.tensors.get(key)
        if theirs is None or theirs.shape != base.tensors[key].shape or not theirs.is_plain:
            found = "is missing" if theirs is None else f"is {theirs}"
            raise GamMergeError(
                f"tensor {key} is {base.tensors[key]} in {base.path} and {found} in {tuned.path}"
            )
    if not chosen:
        raise GamMergeError(
            f"{base.path}: no such linear layers in it; name their last parts with --modules"
        )
    return chosen


def _change(base: Checkpoint, tuned: Checkpoint, key: str) -> float | None:
    """|tuned - base| of a tensor, None where that has no meaning."""
    before, after = base.tensors.get(key), tuned.tensors.get(key)
    if (
        before is None
        or after is None
        or before.shape != after.shape
        or not (before.is_plain and after.is_plain)
    ):
        return None
    return distance(after, before)


def _report(
    base: str, tuned: str, found: Mapping[str, Factored], left_out: Mapping[str, float | None]
) -> ExtractReport:
    modules = [
        ExtractedModule(name, (x.b.shape[0], x.a.shape[1]), x.b.shape[1], x.norm, x.residual)
        for name, x in found.items()
    ]
    return ExtractReport(
        base, tuned, max(module.rank for module in modules), tuple(modules), left_out
    )


def _adapter(
    checkpoint: Checkpoint, base_model: str, found: Mapping[str, Factored], rank: int
) -> Adapter:
    """One rank for all: zero columns and rows pad the modules of lower rank."""
    modules: dict[str, LoraModule] = {}
    for name, x in sorted(found.items()):
        missing = rank - x.b.shape[1]
        b, a = (
            torch.nn.functional.pad(x.b, (0, missing)),
            torch.nn.functional.pad(x.a, (0, 0, 0, missing)),
        )
        modules[name] = LoraModule(name, MemoryTensor(a), MemoryTensor(b), 1.0)
    transposed = any(is_conv1d(checkpoint, name) for name in found)
    adapter = Adapter("extracted", modules, base_model, transposed=transposed)
    return format_of([adapter]).describe(adapter)
