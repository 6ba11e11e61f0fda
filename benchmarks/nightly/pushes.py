"""A network that fails at any step of a push: the Hub has all or nothing, no token leaks."""

from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from helpers import contents, layers
from hub_server import PUSH_STEPS, TOKEN, Fault, Hub, connected

import gam_merge as gm
from benchmarks.nightly.trial import Outcome, counted

_FAULTS = (0, 500, 401, 403)  # dropped without an answer, or answered so


def pushes(folder: Path, cases: int) -> Outcome:
    """Try every step with every fault; afterwards the same push must go through."""
    merged = gm.merge(layers(folder / "sources", modules=2, width=12), out=folder / "out").path
    assert merged is not None
    before, lost, counts = contents(merged), list[str](), Counter[str]()
    every = list(product(PUSH_STEPS, _FAULTS))
    for case in range(cases):
        step, status = every[case % len(every)]
        with pytest.MonkeyPatch.context() as patch, connected(folder / str(case), patch) as hub:
            patch.setenv("HF_TOKEN", TOKEN)
            hub.faults.append(Fault(PUSH_STEPS[step], status))
            error = _push(merged)
            one_line = error != "" and "\n" not in error and TOKEN not in error
            if not one_line or _pushed(hub) or contents(merged) != before:
                lost.append(f"{status} at {step}: {error or 'no error'}")
            hub.faults.clear()
            error = _push(merged)
            after = f"after {status} at {step}"
            if error:
                lost.append(f"{after}: {error}")
            elif not _pushed(hub) or hub.leaks:
                lost.append(f"{after}: not what was pushed, or a token left the Hub")
        counts["refused, then pushed"] += 1
    return Outcome(lost, counted(counts))


def _push(merged: Path) -> str:
    """Push, and return the text of the error, if there is one."""
    try:
        gm.push(merged, "me/merged")
    except gm.GamMergeError as error:
        return str(error)
    return ""


def _pushed(hub: Hub) -> bool:
    """Return whether any of our files are on the Hub."""
    repo = hub.repos.get("me/merged")
    if repo is None:
        return False
    return any(set(files) != {".gitattributes"} for files in repo.commits.values())
