"""``python -m benchmarks gpu``: measure as much as the time allows, and write the tables."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Timer
from typing import Any

import torch

from benchmarks.gpu import report
from benchmarks.measure import RESULTS, save


def main(folder: Path, *, device: str, toy: bool, minutes: float, out: Path | None = None) -> None:
    """Keep every row as it is finished, in gpu.json, and end after so many minutes.

    out: its folder, if not benchmarks/results/, where only results of a GPU are kept; those go into
    the page, too.
    """
    if out is None and (toy or torch.device(device).type != "cuda"):
        raise SystemExit("toy results and those of a CPU are not kept; give --out FOLDER")
    name = _name(device)
    command = [sys.executable, "-m", "benchmarks.gpu.measure", device, str(folder)]
    if toy:
        command.append("--toy")
    start = time.monotonic()
    rows: list[dict[str, Any]] = []
    for row in rows_in_time(command, 60 * minutes):
        rows.append(row)
        print(json.dumps(row), flush=True)
        save("gpu", rows, folder=out or RESULTS, device=name, seconds=time.monotonic() - start)
    print(f"{len(rows)} rows in {time.monotonic() - start:.0f} s")
    if out is None:
        report.write()


def rows_in_time(command: list[str], seconds: float) -> Iterator[dict[str, Any]]:
    """Yield what a process prints, a row of JSON per line, and end it when the time is over.

    A row that would outlast the time is cut off. Raises SystemExit if the process fails before.
    """
    over = Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

        def end() -> None:
            over.set()
            process.kill()

        timer = Timer(seconds, end)
        timer.start()
        for line in process.stdout or ():
            if line.endswith("\n"):
                yield json.loads(line)
        timer.cancel()
    if over.is_set():
        print("the time is over: what is left is unmeasured")
    elif process.returncode:
        raise SystemExit(f"measuring failed with exit code {process.returncode}")


def _name(device: str) -> str:
    """Return what a device is called. Raises SystemExit where there is none."""
    if torch.device(device).type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device; --device cpu --toy --out FOLDER tries the command")
    return torch.cuda.get_device_name(device)
