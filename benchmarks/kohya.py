"""Merges of two kohya files with the shapes of SDXL's UNet, over those of PEFT directories.

Both hold the same tensors, so the difference is what the format costs: a file without a config, an
alpha per module, and a hash of all tensors that sites know a file by.
"""

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import gam_merge as gm
from benchmarks.measure import save, table
from benchmarks.shapes import MODELS, make_adapters
from benchmarks.speed.cases import peak_memory

MODEL, RANK, METHODS = "sdxl", 32, ("mean", "gam")
MOST = 1.3  # times PEFT's seconds
_PREFIX = "base_model.model."


def main(folder: Path, *, repeats: int) -> None:
    """Print a row per method, and write them to benchmarks/results/kohya.json."""
    directories = make_adapters(folder, MODEL, count=2, rank=RANK, dtype=torch.float16)
    files = [_as_kohya(path) for path in directories]
    rows = [_row(folder, method, directories, files, repeats) for method in METHODS]
    print(table(rows))
    print(save("kohya", rows, repeats=repeats))


def _row(
    folder: Path, method: str, directories: list[Path], files: list[Path], repeats: int
) -> dict[str, Any]:
    """Time pairs of merges, one right after the other: a slow minute hits both of a pair."""
    pairs: list[tuple[float, float]] = []
    for i in range(repeats + 1):
        pair = (
            _seconds(directories, method, folder / "merged"),
            _seconds(files, method, folder / "merged.safetensors"),
        )
        if i:  # the first warms the page cache and the libraries
            pairs.append(pair)
    return {
        "case": f"2 x SDXL's UNet, {sum(1 for _ in MODELS[MODEL])} modules, r = {RANK}, fp16",
        "method": method,
        "PEFT (s)": statistics.median(peft for peft, _ in pairs),
        "kohya (s)": statistics.median(kohya for _, kohya in pairs),
        "kohya over PEFT": statistics.median(kohya / peft for peft, kohya in pairs),
        "PEFT, memory above imports (MB)": peak_memory(directories, method, folder / "merged"),
        "kohya, memory above imports (MB)": peak_memory(
            files, method, folder / "merged.safetensors"
        ),
    }


def _seconds(sources: list[Path], method: str, out: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    gm.merge(sources, method=method, out=out, force=True)
    return time.perf_counter() - start


def _as_kohya(directory: Path) -> Path:
    """Return a kohya file of the tensors of a PEFT directory, which is made once."""
    file = directory.with_suffix(".safetensors")
    if file.exists():
        return file
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in load_file(directory / "adapter_model.safetensors").items():
        name, _, role = key.removeprefix(_PREFIX).rpartition(".lora_")
        stem = "lora_unet_" + name.replace(".", "_")
        down = role == "A.weight"
        tensors[f"{stem}.lora_{'down' if down else 'up'}.weight"] = tensor
        if down:
            tensors[f"{stem}.alpha"] = torch.tensor(2.0 * RANK, dtype=tensor.dtype)
    save_file(tensors, file, {"ss_network_module": "networks.lora"})
    return file
