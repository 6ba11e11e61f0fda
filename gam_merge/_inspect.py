"""``inspect``: what one adapter holds, and its condition.

What a merge would refuse is reported, not raised.

Tensor legend: ``L`` modules at a time, ``r`` rank.
"""

from collections import Counter
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from math import prod

import torch

from gam_kernels import Delta
from gam_merge._common.tensors import dtype_name, pick_device
from gam_merge._common.types import Progress
from gam_merge._diagnose.inspection import Inspection, ModuleInspection
from gam_merge._lineup.lineup import LineupBucket, line_up
from gam_merge._load import Source, load
from gam_merge._run.reader import broken_factor, is_sound, read_delta
from gam_merge._run.walk import walk_chunks


def inspect(
    source: Source,
    *,
    base_model: str | None = None,
    alpha: float | None = None,
    device: str | torch.device = "auto",
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Look at one adapter, and at what a merge would refuse.

    Reports modules, ranks, scales, norms and spectra; modules that are zero or broken.

    Args:
        source: a directory, a file, a Hub id or an adapter in memory; see ``load``.
        base_model: the base model of a bare file without a config.
        alpha: lora_alpha of a bare file without a config.
        device: "auto", "cpu", "cuda" or any torch device.
        executor: where the work runs; by default in threads of this process.
        progress: called with (modules done, modules in all).

    Returns:
        Inspection: all figures, by layer, type and module, and the problems.

    Raises:
        GamMergeError: only if the source cannot be read at all.

    Example:
        >>> inspection = gm.inspect("examples/adapters/addition")
        >>> len(inspection.modules), inspection.ranks, inspection.zero, inspection.problems
        (210, (8,), (), ())
        >>> round(inspection.total.effective_rank, 1)
        6.2
        >>> round(inspection.by("layer")["model.layers.0"].energy_share(4), 3)
        0.914
    """
    problems: list[str] = []
    adapter = load(source, base_model=base_model, alpha=alpha, problems=problems)
    modules: list[ModuleInspection] = []
    if adapter.modules:
        lineup = line_up([adapter])
        task = partial(_visit, lineup.compute_dtype, pick_device(device))
        for part in walk_chunks(lineup, task, executor):
            modules += part
            if progress:
                progress(len(modules), lineup.matrices)
    return Inspection(
        source=adapter.source,
        base_model=adapter.base_model,
        dtype=dtype_name(adapter.dtype) if adapter.modules else None,
        settings=adapter.settings,
        problems=tuple(problems),
        modules=tuple(sorted(modules, key=lambda module: module.name)),
        extras=Counter(extra.kind for extra in adapter.extras.values()),
        notes=adapter.notes,
    )


@torch.no_grad()
def _visit(dtype: torch.dtype, device: torch.device, chunk: LineupBucket) -> list[ModuleInspection]:
    """Inspect the modules of a chunk. Runs on a worker."""
    members = [member for (member,) in chunk.members]
    delta = read_delta(members, dtype, device)
    sound = is_sound(delta)
    cores = torch.where(sound[:, None, None], delta.core, 0.0)
    spectra = torch.linalg.svdvals(cores).tolist()  # (L, r)
    ranks = torch.where(sound, delta.rank, 0).tolist()
    stack = chunk.layout.stack
    modules = []
    for j, spectrum in enumerate(spectra):
        member, i = members[j // stack], j % stack
        module = ModuleInspection(
            name=f"{member.name}[{i}]" if stack > 1 else member.name,
            shape=member.shape,
            rank=member.matrix_rank,
            scale=member.scale,
            dtype=dtype_name(member.dtype),
            parameters=(prod(member.a.shape) + prod(member.b.shape)) // stack,
            spectrum=tuple(spectrum[: ranks[j]]),
        )
        modules.append(_with_damage(module, delta, j, sound=bool(sound[j])))
    return modules


def _with_damage(
    module: ModuleInspection, delta: Delta, j: int, *, sound: bool
) -> ModuleInspection:
    """Name the factor that is zero or broken, if any. ``module`` is number ``j`` of ``delta``."""
    if not sound:
        return replace(module, broken=broken_factor(delta, j))
    if not module.spectrum:
        return replace(module, zero=_zero_factor(delta, j))
    return module


def _zero_factor(delta: Delta, j: int) -> str:
    """Name what makes module ``j`` zero."""
    if not delta.b[j].any():
        return "lora_B"
    return "the product" if delta.a[j].any() else "lora_A"
