"""How far a merge in float32 is from the dense float64 oracle as the factors become ill-conditioned."""

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
    """Largest relative Frobenius error over three draws of three adapters, all factors of that condition number."""
    errors = {"gam": 0.0, "mean": 0.0}
    config = {"r": _R, "lora_alpha": _R, "target_modules": ["w"], "base_model_name_or_path": "none"}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        common = torch.randn(_M, _R, generator=generator), torch.randn(_N, _R, generator=generator)
        pairs = [
            tuple(_graded(generator, side, condition) for side in common) for _ in range(_COUNT)
        ]
        deltas = [b.double() @ a.double().mT for b, a in pairs]
        for method, oracle in (("gam", dense.gam), ("mean", partial(dense.mean, rank=_R))):
            expected = oracle(deltas, [1 / _COUNT] * _COUNT)
            states = [
                {f"{_KEY}.lora_A.weight": a.mT.contiguous(), f"{_KEY}.lora_B.weight": b}
                for b, a in pairs
            ]
            found = gm.merge_state_dicts(states, config, method=method).adapter.modules["w"].delta()
            errors[method] = max(errors[method], float((found - expected).norm() / expected.norm()))
    return {
        "condition": f"{condition:.0e}",
        **{f"{method}, relative error": error for method, error in errors.items()},
    }


def _graded(generator: torch.Generator, common: Tensor, condition: float) -> Tensor:
    """(rows, r) float32 with singular values from 1 down to 1 / condition, on a space partly that of ``common``: where
    two have nothing in common the rotation between them is decided by rounding, in any precision."""
    u, _ = torch.linalg.qr((common + torch.randn(common.shape, generator=generator)).double())
    v, _ = torch.linalg.qr(torch.randn(_R, _R, generator=generator, dtype=torch.float64))
    s = torch.logspace(0, -math.log10(condition), _R, dtype=torch.float64)
    return ((u * s) @ v.mT).float()
