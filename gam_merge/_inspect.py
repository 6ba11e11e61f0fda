"""``inspect``: one adapter, what it holds and what shape it is in. What a merge would refuse is told, not raised.

Tensor legend: ``L`` modules at a time, ``r`` rank.
"""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial
from itertools import product
from math import prod
from typing import Any

import torch

from gam_kernels import Delta
from gam_merge._common.tensors import dtype_name, pick_device
from gam_merge._common.types import Progress
from gam_merge._diagnose.inspection import Inspection, ModuleInspection
from gam_merge._lineup.lineup import PlannedBucket, make_plan
from gam_merge._load import Source, load
from gam_merge._run.walk import broken_factor, is_sound, read_delta, walk_chunks

# Fields of a config that make an adapter more, or other, than a plain LoRA, and their plain values if not empty.
_VARIANTS: Mapping[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": None,
    "arrow_config": None,
    "bias": "none",
    "fan_in_fan_out": None,
    "init_lora_weights": True,
    "layer_replication": None,
    "lora_bias": None,
    "modules_to_save": None,
    "rank_pattern": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": None,
    "use_qalora": None,
    "use_rslora": None,
}


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
        plan = make_plan([adapter])
        task = partial(_visit, plan.compute_dtype, pick_device(device))
        for part in walk_chunks(plan, task, executor):
            modules += part
            if progress:
                progress(len(modules), plan.matrices)
    return Inspection(
        source=adapter.source,
        base_model=adapter.base_model,
        dtype=dtype_name(adapter.dtype) if adapter.modules else None,
        settings=_settings(adapter.config),
        problems=tuple(problems),
        modules=tuple(sorted(modules, key=lambda module: module.name)),
        extras=Counter(extra.kind for extra in adapter.extras.values()),
    )


@torch.no_grad()
def _visit(
    dtype: torch.dtype, device: torch.device, chunk: PlannedBucket
) -> list[ModuleInspection]:
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


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the config sets beyond a plain LoRA."""
    known = {name: config[name] for name in _VARIANTS if config.get(name)}
    return {name: value for name, value in known.items() if value != _VARIANTS[name]}
