"""``extract``: the change between two models on disk, as an adapter of low rank."""

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
from gam_merge._lineup.serving import SERVED_RANKS
from gam_merge._models.checkpoint import Checkpoint, is_conv1d, open_checkpoint
from gam_merge._models.difference import Factored, difference, distance, factorize
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._read.formats import format_of
from gam_merge._write.adapter import EXTRACT_REPORT_NAME, as_json, config_files, save_adapter
from gam_merge._write.output import check_output
from gam_merge._write.provenance import METHOD_KEY

# Weights (out, in) in numbered layers that do not belong to linear layers, or to none that PEFT
# adapts.
_NOT_LINEAR = {"gate", "router", "relative_attention_bias", "embed_tokens", "wte", "wpe"}


@dataclass(frozen=True)
class ExtractedModule:
    """One module of an extracted adapter.

    The residual |difference - delta| / |difference| is measured with the factors as written.

    Example:
        >>> module = gm.ExtractedModule("q_proj", (8, 8), rank=2, norm=4.0, residual=0.5)
        >>> 1 - module.residual**2  # the share of the squared norm that the factors keep
        0.75
    """

    name: str
    shape: tuple[int, int]  # (out, in)
    rank: int
    norm: float  # |difference|
    residual: float


@dataclass(frozen=True)
class ExtractReport:
    """How much of the change from one model to the other is in the adapter.

    ``left_out`` maps the other tensors that changed (embeddings, norms, biases) to the norm of the
    change; None where the tensor is missing from one of the models or has another shape there.

    Example:
        >>> modules = (gm.ExtractedModule("q_proj", (8, 8), rank=2, norm=4.0, residual=0.0),)
        >>> report = gm.ExtractReport("base", "tuned", 2, modules, left_out={"norm.weight": 3.0})
        >>> report.energy_kept  # 16 / (16 + 9)
        0.64
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
        """Share of the squared norm of all changes that is in the adapter."""
        in_modules = sum(module.norm**2 for module in self.modules)
        outside = sum(norm**2 for norm in self.left_out.values() if norm)
        return in_modules * (1 - self.residual**2) / (in_modules + outside)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: the totals first, then every module."""
        return {"residual": self.residual, "energy_kept": self.energy_kept, **asdict(self)}


@dataclass(frozen=True)
class ExtractResult:
    """An extracted adapter, in memory or on disk, and how much of the change it holds.

    Example:
        >>> import os, torch
        >>> from safetensors.torch import save_file
        >>> os.mkdir("base"), os.mkdir("tuned")
        (None, None)
        >>> save_file({"layers.0.q_proj.weight": torch.eye(8)}, "base/model.safetensors")
        >>> save_file({"layers.0.q_proj.weight": torch.eye(8) + 1}, "tuned/model.safetensors")
        >>> result = gm.extract("base", "tuned", rank=1)
        >>> gm.load(result.save("adapter")).rank
        1
    """

    adapter: Adapter
    report: ExtractReport

    def save(self, path: str | PathLike[str], *, force: bool = False) -> Path:
        """Write the adapter directory that PEFT loads, with the report: whole or not at all.

        ``force`` replaces a ``path`` that is empty or was written by gam-merge. Raises
        GamMergeError, also if ``path`` exists without it.
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
    """Extract the adapter that takes a model closest to its fine-tuned version.

    Each linear layer is factorized by itself, with an error within 1 % of the least that the rank
    allows, before rounding to ``dtype``. Only one difference at a time, in float32, and the adapter
    are in memory.

    Args:
        base: a directory that ``save_pretrained`` wrote in safetensors.
        tuned: the same of the fine-tuned model.
        rank: the rank of every module.
        energy: instead of a rank: the share of its squared norm that each difference keeps, in
            (0, 1], at the lowest rank that does. The adapter gets the largest of these ranks.
        max_rank: upper limit for the ranks that ``energy`` asks for, by default 512.
        out: write the adapter to this directory, too; see ``ExtractResult.save``.
        modules: last parts of the names of the layers to take, such as "q_proj"; by default all
            linear layers within numbered layers.
        base_model: the base model that the adapter names, by default ``base`` as given.
        dtype: dtype of the adapter, by default that of each weight of ``tuned``.
        seed: seed of the random sketches.
        force: replace an ``out`` that is empty or was written by gam-merge.
        progress: called with (tensors done, tensors in all).

    Returns:
        ExtractResult: the adapter, and the report of what it keeps.

    Raises:
        GamMergeError: for models that do not fit together or do not differ, among others; and then
            nothing is written.

    Example:
        >>> import os, torch
        >>> from safetensors.torch import save_file
        >>> os.mkdir("base"), os.mkdir("tuned")
        (None, None)
        >>> save_file({"layers.0.q_proj.weight": torch.eye(8)}, "base/model.safetensors")
        >>> save_file({"layers.0.q_proj.weight": torch.eye(8) + 1}, "tuned/model.safetensors")
        >>> report = gm.extract("base", "tuned", energy=0.99, out="adapter").report
        >>> report.rank, round(report.energy_kept, 3)
        (1, 1.0)
    """
    RankPolicy(rank, energy, max_rank).check()
    if rank is None and energy is None:
        raise GamMergeError("give --rank or --energy (rank= or energy= in Python)")
    largest, target = rank or max_rank or SERVED_RANKS[-1], parse_dtype(dtype)
    before, after = open_checkpoint(base), open_checkpoint(tuned)
    if out is not None:
        check_output(Path(out), force=force, sources=[before.path, after.path])
    chosen = _linear_layers(before, after, modules)
    factored: dict[str, Factored] = {}
    left_out: dict[str, float | None] = {}
    keys = sorted(before.tensors.keys() | after.tensors.keys())
    for done, key in enumerate(keys, 1):
        if name := chosen.get(key):
            x, y = before.tensors[key], after.tensors[key]
            factors = factorize(
                difference(y, x, transposed=is_conv1d(before, name)),
                rank=largest,
                energy=energy,
                dtype=target or y.dtype,
                random=generator(seed, name),
            )
            if factors is not None:
                factored[name] = factors
        elif (change := _change(before, after, key)) != 0.0:
            left_out[key] = change
        if progress:
            progress(done, len(keys))
    if not factored:
        raise GamMergeError(
            f"{base} and {tuned} do not differ in any of these layers; nothing to extract"
        )
    report = _report(str(base), str(tuned), factored, left_out)
    adapter = _adapter(before, base_model or str(base), factored, report.rank)
    result = ExtractResult(adapter, report)
    if out is not None:
        result.save(out, force=force)
    return result


def _linear_layers(
    base: Checkpoint, tuned: Checkpoint, modules: Sequence[str] | None
) -> dict[str, str]:
    """Choose the weights to take: the names of their modules, by key.

    Raises GamMergeError if there are none, or if the models do not fit together in them.
    """
    chosen: dict[str, str] = {}
    for key, tensor in base.tensors.items():
        name, _, kind = key.rpartition(".")
        is_matrix = kind == "weight" and len(tensor.shape) == 2 and tensor.is_plain
        if is_matrix and _is_chosen(name, modules):
            _check_pair(base, tuned, key)
            chosen[key] = name
    if not chosen:
        raise GamMergeError(
            f"{base.path}: found no linear layers to take; give the last parts of their names "
            "with --modules (modules= in Python)"
        )
    return chosen


def _is_chosen(name: str, modules: Sequence[str] | None) -> bool:
    """Tell whether a module was asked for, or by default is a linear one in a numbered layer."""
    parts = name.split(".")
    if modules is not None:
        return parts[-1] in modules
    numbered = any(part.isdecimal() for part in parts)
    return numbered and "experts" not in parts and parts[-1] not in _NOT_LINEAR


def _check_pair(base: Checkpoint, tuned: Checkpoint, key: str) -> None:
    """Raise GamMergeError if the models do not both have a weight that can be subtracted."""
    before, after = base.tensors[key], tuned.tensors.get(key)
    if after is None:
        problem = "is missing"
    elif after.shape != before.shape or not after.is_plain:
        problem = f"is {after}"
    else:
        return
    raise GamMergeError(f"tensor {key} is {before} in {base.path} and {problem} in {tuned.path}")


def _change(base: Checkpoint, tuned: Checkpoint, key: str) -> float | None:
    """Return |tuned - base| of a tensor, None where that is not defined."""
    before, after = base.tensors.get(key), tuned.tensors.get(key)
    if before is None or after is None or before.shape != after.shape:
        return None
    return distance(after, before) if before.is_plain and after.is_plain else None


def _report(
    base: str, tuned: str, factored: Mapping[str, Factored], left_out: Mapping[str, float | None]
) -> ExtractReport:
    modules: list[ExtractedModule] = []
    for name, x in factored.items():
        (m, k), n = x.b.shape, x.a.shape[1]
        modules.append(ExtractedModule(name, (m, n), k, x.norm, x.residual))
    rank = max(module.rank for module in modules)
    return ExtractReport(base, tuned, rank, tuple(modules), left_out)


def _adapter(
    checkpoint: Checkpoint, base_model: str, factored: Mapping[str, Factored], rank: int
) -> Adapter:
    """Build an adapter of one rank: zero columns and rows pad the modules of lower rank."""
    modules: dict[str, LoraModule] = {}
    for name, x in sorted(factored.items()):
        missing = rank - x.b.shape[1]
        b = torch.nn.functional.pad(x.b, (0, missing))  # (m, rank)
        a = torch.nn.functional.pad(x.a, (0, 0, 0, missing))  # (rank, n)
        modules[name] = LoraModule(name, MemoryTensor(a), MemoryTensor(b), 1.0)
    transposed = any(is_conv1d(checkpoint, name) for name in factored)
    adapter = Adapter("extracted", modules, base_model, transposed=transposed)
    return format_of([adapter]).describe(adapter)
