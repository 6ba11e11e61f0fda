"""A network that fails at any step of a push: the Hub has all or nothing, the directory stays, no token is told."""

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
    """Every step with every fault, over and over; then the network is well again, and the same push goes through."""
    merged = gm.merge(layers(folder / "sources", modules=2, width=12), out=folder / "out").path
    assert merged is not None
    before, lost, found = contents(merged), list[str](), Counter[str]()
    every = list(product(PUSH_STEPS, _FAULTS))
    for case in range(cases):
        step, status = every[case % len(every)]
        with pytest.MonkeyPatch.context() as patch, connected(folder / str(case), patch) as hub:
            patch.setenv("HF_TOKEN", TOKEN)
            hub.faults.append(Fault(PUSH_STEPS[step], status))
            said = _push(merged)
            if (
                not said
                or "\n" in said
                or TOKEN in said
                or _pushed(hub)
                or contents(merged) != before
            ):
                lost.append(f"{status} at {step}: {said or 'no error'}")
            hub.faults.clear()
            if said := _push(merged):
                lost.append(f"after {status} at {step}: {said}")
            elif not _pushed(hub) or hub.leaks:
                lost.append(
                    f"after {status} at {step}: not what was pushed, or a token left the Hub"
                )
        found["refused, then pushed"] += 1
    return Outcome(lost, counted(found))


def _push(merged: Path) -> str:
    try:
        gm.push(merged, "me/merged")
    except gm.GamMergeError as error:
        return str(error)
    return ""


def _pushed(hub: Hub) -> bool:
    """Whether anything of ours is there."""
    repo = hub.repos.get("me/merged")
    return repo is not None and any(
        set(files) != {".gitattributes"} for files in repo.commits.values()
    )
