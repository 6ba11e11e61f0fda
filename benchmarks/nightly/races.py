"""Several merges into one output at once: one wins, the others say so."""

import os
import sys
from collections import Counter
from pathlib import Path

import torch
from children import start
from helpers import contents, layers

import gam_merge as gm
from benchmarks.nightly.trial import Outcome, counted

_MERGES = 4
_WON, _LATE = 0, 3


def races(folder: Path, cases: int) -> Outcome:
    """Start merges with different weights at once, and check the output and every exit code."""
    sources = layers(folder / "sources", modules=4, width=64)
    weights = [(1.0, float(i)) for i in range(1, _MERGES + 1)]
    whole = [
        contents(gm.merge(sources, weights=w, method="mean", out=folder / f"whole-{i}").path)
        for i, w in enumerate(weights)
    ]
    lost, counts = list[str](), Counter[str]()
    for case in range(cases):
        out = folder / str(case) / "out"
        out.parent.mkdir()
        processes = [start(_merge, sources, w, out) for w in weights]
        for process in processes:
            process.join()
        codes = [process.exitcode for process in processes]
        won = [i for i, code in enumerate(codes) if code == _WON]
        if len(won) != 1 or codes.count(_LATE) != _MERGES - 1:
            lost.append(f"exit codes {codes}")
        elif contents(out) != whole[won[0]] or os.listdir(out.parent) != ["out"]:
            lost.append("the output is not that of the one that won, or something else is left")
        counts["one won"] += len(won) == 1
    text = counted(counts)
    return Outcome(lost, text if lost else f"{text}, {_MERGES - 1} said so each time")


def _merge(sources: list[Path], weights: tuple[float, float], out: Path) -> None:
    torch.set_num_threads(1)
    try:
        gm.merge(sources, weights=weights, method="mean", out=out)
    except gm.GamMergeError as error:
        sys.exit(_LATE if str(error).startswith(f"{out}: already exists") else str(error))
    sys.exit(_WON)
