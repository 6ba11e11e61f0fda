"""DoRA (arXiv 2402.09353): rows of W + D are scaled to trained magnitudes. Merged exactly, as DoRA again.

Adapter i makes of the base W the matrix diag(c_i) (W + D_i) with c_i = m_i / |rows of W + D_i|; a plain adapter has
c_i = 1, one without the module D_i = 0 as well. With c = 1 + sum w_i (c_i - 1) the mean of what they make of it is

    W + sum w_i (diag(c_i) (W + D_i) - W) = diag(c) (W + D'),   D' = sum w_i diag(c_i / c) D_i,

so a merge of the rescaled deltas is the merge, and its magnitudes are c |rows of W + D'|.
Tensor legend: ``N`` adapters, ``L`` modules at a time, ``m`` out, ``n`` in, ``r`` rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import read
from gam_merge._deltas.rows import RowScaling
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._read.layout import ConvLayout, ExpertsLayout
from gam_merge._read.weight import BaseWeight, Factors

_ROWS = 256  # of a weight that are worked on at a time
_VANISHING = 1e-6  # a smaller |c| divides what is left by rounding


def rescale(
    names: Sequence[str],
    weights: Sequence[BaseWeight],
    members: Sequence[Sequence[LoraModule]],
    factors: Sequence[tuple[Tensor, Tensor]],
    shares: Tensor,
) -> tuple[list[Tensor], RowScaling]:
    """The B of every adapter with its rows scaled by c_i / c, and c.

    members: of each adapter, one a module. factors: of each adapter, b (L, m, r) and a (L, r, n) without their scale.
    shares: (L, N), w_i. Raises GamMergeError where magnitudes cancel.
    """
    gains = torch.stack(
        [
            _gains(weights[j], [m[j] for m in members], [(b[j], a[j]) for b, a in factors])
            for j in range(len(names))
        ]
    )  # (L, N, m)
    c = 1 + (shares.unsqueeze(-1) * (gains - 1)).sum(1)  # (L, m)
    for j, name in enumerate(names):
        if not (c[j].isfinite().all() and c[j].abs().min() > _VANISHING):
            raise GamMergeError(
                f"module {name}: the magnitudes of its DoRA adapters cancel; change the weights"
            )
    ratios = (gains / c.unsqueeze(1)).unsqueeze(-1)  # (L, N, m, 1)
    return [b * ratios[:, i].to(b) for i, (b, _) in enumerate(factors)], RowScaling(
        tuple(weights), c
    )


def _gains(weight: BaseWeight, members: Sequence[LoraModule], factors: Sequence[Factors]) -> Tensor:
    """c_i of one module: (N, m) float64."""
    device = factors[0][0].device
    gains = torch.ones(len(members), members[0].shape[0], dtype=torch.float64, device=device)
    trained = [i for i, member in enumerate(members) if member.magnitude is not None]
    norms = weight.row_norms([(members[i].scale * factors[i][0], factors[i][1]) for i in trained])
    for i, norm in zip(trained, norms, strict=True):
        magnitude = members[i].magnitude
        assert magnitude is not None
        gains[i] = read(magnitude).to(gains).flatten() / norm
    return gains


def is_dora(adapter: Adapter) -> bool:
    return any(module.magnitude is not None for module in adapter.modules.values())


def check_dora(adapters: Sequence[Adapter]) -> None:
    """Raises GamMergeError where an adapter has what no DoRA can: a merge with one makes all modules DoRA."""
    dora = next(filter(is_dora, adapters))
    for adapter in adapters:
        for extra in adapter.extras.values():
            if extra.kind == "lora_bias":
                raise GamMergeError(
                    f"{adapter.source} has {extra.name} and {dora.source} is DoRA: PEFT takes no both"
                )
        for name, module in adapter.modules.items():
            layout = module.layout
            odd = isinstance(layout, ExpertsLayout) or (
                isinstance(layout, ConvLayout) and layout.groups > 1
            )
            if odd or ".base_layer" in name:
                raise GamMergeError(
                    f"{adapter.source} adapts {name} and {dora.source} is DoRA, which PEFT has not there"
                )


def base_weights_needed(adapters: Sequence[Adapter]) -> GamMergeError:
    dora = next(filter(is_dora, adapters))
    named = f", perhaps {dora.base_model}" if dora.base_model else ""
    return GamMergeError(
        f"{dora.source}: is a DoRA adapter, whose delta depends on the base weights: give them with --base MODEL "
        f"(base_model= in Python), a directory or a Hub id{named}"
    )
