"""``inspect``: one adapter, what it holds and what shape it is in. What a merge would refuse is told, not raised.

Tensor legend: ``L`` modules at a time, ``r`` rank.
"""

from collections import Counter
from concurrent.futures import Executor
from functools import partial
from itertools import product
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
    """Look at one adapter: modules, ranks, scales, norms and spectra, what is dead or broken in it, what a merge would
    refuse and why.

    Arguments are those of ``load`` and ``merge``. Raises GamMergeError only for what cannot be read at all.
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
    )


@torch.no_grad()
def _visit(dtype: torch.dtype, device: torch.device, chunk: LineupBucket) -> list[ModuleInspection]:
    """Runs on a worker."""
    members = [member for (member,) in chunk.members]
    delta = read_delta(members, dtype, device)
    stack = chunk.layout.stack
    sound = is_sound(delta)
    spectra = torch.linalg.svdvals(
        torch.where(sound[:, None, None], delta.core, 0.0)
    ).tolist()  # (L, r)
    ranks = torch.where(sound, delta.rank, 0).tolist()
    return [
        ModuleInspection(
            name=f"{member.name}[{i}]" if stack > 1 else member.name,
            shape=member.shape,
            rank=member.matrix_rank,
            scale=member.scale,
            dtype=dtype_name(torch.promote_types(member.a.dtype, member.b.dtype)),
            parameters=(prod(member.a.shape) + prod(member.b.shape)) // stack,
            spectrum=tuple(spectra[j][: ranks[j]]),
            zero=None if ranks[j] or not sound[j] else _zero_factor(delta, j),
            broken=None if sound[j] else broken_factor(delta, j),
        )
        for j, (member, i) in enumerate(product(members, range(stack)))
    ]


def _zero_factor(delta: Delta, j: int) -> str:
    """What makes module ``j`` zero."""
    named = {"lora_B": delta.b[j], "lora_A": delta.a[j]}
    return next((name for name, factor in named.items() if not factor.any()), "the product")
