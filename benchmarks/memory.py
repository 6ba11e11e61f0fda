"""Peak memory and time of every method on one large module, above what the process held before."""

import ctypes
import gc
import time
from pathlib import Path
from typing import Any

import torch

import gam_merge as gm
from benchmarks.measure import save, table

M, N_IN, COUNT, RANK = 4096, 12288, 4, 16
_CONTROL, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def main(only: str) -> None:
    """Print a row per method, and write all of them to benchmarks/results/memory.json.

    On Linux only: it reads /proc.
    """
    generator = torch.Generator().manual_seed(0)
    adapters = {
        count: [_adapter(generator, M, N_IN, i) for i in range(count)] for count in (2, COUNT)
    }
    small = {count: [_adapter(generator, 64, 48, i) for i in range(count)] for count in (2, COUNT)}
    rows = []
    for name in filter(lambda name: only in name, _names()):
        count = gm.get_method(name).adapters or COUNT
        gm.merge(small[count], method=name)  # libraries load, workspaces appear
        megabytes, seconds = _measure(adapters[count], name)
        rows.append({"method": name, "adapters": count, "peak (MB)": megabytes, "seconds": seconds})
        print(rows[-1], flush=True)
    print(table(rows))
    if not only:
        print(save("memory", rows))


def _names() -> list[str]:
    methods = gm.methods()
    spaces = ("knots", "drm_h", "drm_v", "ctm", "factor", "delta")
    names = [method.name for method in methods]
    for method in methods:
        if method.rule.entries and method.name not in ("cat", "svd_k"):
            names += [f"{method.rule.name}@{space}" for space in spaces]
    return [*names, "pico+sum", "sum+svc"]


def _measure(adapters: list[gm.Adapter], method: str) -> tuple[float, float]:
    """Return the megabytes at the peak above those before, and the seconds."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    _CONTROL.write_text("5")  # the peak starts again from here
    before, start = _status("VmRSS"), time.perf_counter()
    gm.merge(adapters, method=method)
    return (_status("VmHWM") - before) / 1e6, time.perf_counter() - start


def _status(field: str) -> int:
    """Return a field of the process status, in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _adapter(generator: torch.Generator, m: int, n: int, i: int) -> gm.Adapter:
    def factor(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) / shape[1] ** 0.5).bfloat16()

    config: dict[str, Any] = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}
    prefix = "base_model.model.layers.0.mlp.down_proj"
    tensors = {
        f"{prefix}.lora_A.weight": factor(RANK, n),
        f"{prefix}.lora_B.weight": factor(m, RANK),
    }
    return gm.from_state_dict(tensors, config, name=str(i))
