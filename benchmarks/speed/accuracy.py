"""How far a merge in float32 is from the dense float64 oracle, for ill-conditioned factors, too."""

import math
from functools import partial
from typing import Any

import dense
import torch
from torch import Tensor

import gam_merge as gm

CONDITIONS = (1e0, 1e2, 1e4)
_M, _N, _R, _COUNT = 768, 512, 16, 3
_KEY = "base_model.model.w"


def measure(condition: float) -> dict[str, Any]:
    """Return the largest relative Frobenius error over three draws of three adapters.

    All factors have this condition number.
    """
    errors = {"gam": 0.0, "mean": 0.0}
    config = {"r": _R, "lora_alpha": _R, "target_modules": ["w"], "base_model_name_or_path": "none"}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        common = torch.randn(_M, _R, generator=generator), torch.randn(_N, _R, generator=generator)
        pairs: list[tuple[Tensor, Tensor]] = []
        for _ in range(_COUNT):
            b, a = (_graded(generator, side, condition) for side in common)
            pairs.append((b, a))
        deltas = [b.double() @ a.double().mT for b, a in pairs]
        for method, oracle in (("gam", dense.gam), ("mean", partial(dense.mean, rank=_R))):
            expected = oracle(deltas, [1 / _COUNT] * _COUNT)
            states: list[dict[str, Tensor]] = []
            for b, a in pairs:
                tensors = {"lora_A": a.mT.contiguous(), "lora_B": b}
                states.append({f"{_KEY}.{name}.weight": x for name, x in tensors.items()})
            adapter = gm.merge_state_dicts(states, config, method=method).adapter
            error = (adapter.modules["w"].delta() - expected).norm() / expected.norm()
            errors[method] = max(errors[method], float(error))
    return {
        "condition": f"{condition:.0e}",
        **{f"{method}, relative error": error for method, error in errors.items()},
    }


def _graded(generator: torch.Generator, common: Tensor, condition: float) -> Tensor:
    """Return (rows, r) in float32 with singular values from 1 down to 1 / condition.

    Its space is partly that of ``common``: if two spaces have nothing in common, rounding decides
    the rotation between them, in any precision.
    """
    u, _ = torch.linalg.qr((common + torch.randn(common.shape, generator=generator)).double())
    v, _ = torch.linalg.qr(torch.randn(_R, _R, generator=generator, dtype=torch.float64))
    s = torch.logspace(0, -math.log10(condition), _R, dtype=torch.float64)
    return ((u * s) @ v.mT).float()
