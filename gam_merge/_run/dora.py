"""DoRA (arXiv 2402.09353): rows of W + D are scaled to trained magnitudes. Merged exactly.

Adapter i makes of the base W the matrix diag(c_i) (W + D_i) with c_i = m_i / |rows of W + D_i|; a
plain adapter has c_i = 1, one without the module D_i = 0 as well. With c = 1 + sum w_i (c_i - 1)
the mean of these matrices is

    W + sum w_i (diag(c_i) (W + D_i) - W) = diag(c) (W + D'),   D' = sum w_i diag(c_i / c) D_i,

so a merge of the rescaled deltas is the merge, a DoRA again, and its magnitudes are
c |rows of W + D'|.
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

_VANISHING = 1e-6  # a smaller |c| divides what is left by rounding


def rescale(
    names: Sequence[str],
    weights: Sequence[BaseWeight],
    members: Sequence[Sequence[LoraModule]],
    factors: Sequence[Factors],
    shares: Tensor,
) -> tuple[list[Tensor], RowScaling]:
    """Return the B of every adapter with its rows scaled by c_i / c, and c.

    members: per adapter, one per module. factors: per adapter, b (L, m, r) and a (L, r, n) without
    their scale. shares: (L, N), w_i. Raises GamMergeError where magnitudes cancel.
    """
    gains: list[Tensor] = []
    for j, weight in enumerate(weights):
        module_members = [column[j] for column in members]
        module_factors = [(b[j], a[j]) for b, a in factors]
        gains.append(_gains(weight, module_members, module_factors))
    c_i = torch.stack(gains)  # (L, N, m)
    c = 1 + (shares.unsqueeze(-1) * (c_i - 1)).sum(1)  # (L, m)
    for j, name in enumerate(names):
        if not c_i[j].isfinite().all():
            raise GamMergeError(
                f"module {name}: a row of the weight plus its delta is zero, which DoRA cannot "
                "scale; an adapter belongs to another base model"
            )
        if not c[j].abs().min() > _VANISHING:
            raise GamMergeError(
                f"module {name}: the magnitudes of its DoRA adapters cancel; change the weights"
            )
    ratios = (c_i / c.unsqueeze(1)).unsqueeze(-1)  # (L, N, m, 1)
    rescaled = [b * ratios[:, i].to(b) for i, (b, _) in enumerate(factors)]
    return rescaled, RowScaling(tuple(weights), c)


def _gains(weight: BaseWeight, members: Sequence[LoraModule], factors: Sequence[Factors]) -> Tensor:
    """Return c_i of one module: (N, m) float64."""
    device = factors[0][0].device
    gains = torch.ones(len(members), members[0].shape[0], dtype=torch.float64, device=device)
    trained = [i for i, member in enumerate(members) if member.magnitude is not None]
    deltas = [(members[i].scale * factors[i][0], factors[i][1]) for i in trained]
    for i, norm in zip(trained, weight.row_norms(deltas), strict=True):
        magnitude = members[i].magnitude
        assert magnitude is not None
        gains[i] = read(magnitude).to(gains).flatten() / norm
    return gains


def check_dora(adapters: Sequence[Adapter]) -> None:
    """Raise GamMergeError where an adapter has parts that DoRA cannot have.

    A merge with one DoRA adapter makes all modules DoRA.
    """
    dora = _first_dora(adapters)
    for adapter in adapters:
        for extra in adapter.extras.values():
            if extra.kind == "lora_bias":
                raise GamMergeError(
                    f"{adapter.source} has {extra.name} and {dora.source} uses DoRA; PEFT does not "
                    "support the two together"
                )
        for name, module in adapter.modules.items():
            layout = module.layout
            grouped = isinstance(layout, ConvLayout) and layout.groups > 1
            if grouped or isinstance(layout, ExpertsLayout) or module.owner != name:
                raise GamMergeError(
                    f"{dora.source} uses DoRA, which PEFT does not support on {name}, adapted by "
                    f"{adapter.source}"
                )


def base_weights_needed(adapters: Sequence[Adapter]) -> GamMergeError:
    """Return the error for DoRA adapters without a base model."""
    dora = _first_dora(adapters)
    named = f", perhaps {dora.base_model}" if dora.base_model else ""
    return GamMergeError(
        f"{dora.source}: is a DoRA adapter, whose delta depends on the base weights: give them "
        f"with --base MODEL (base_model= in Python), a directory or a Hub id{named}"
    )


def _first_dora(adapters: Sequence[Adapter]) -> Adapter:
    return next(adapter for adapter in adapters if adapter.is_dora)
