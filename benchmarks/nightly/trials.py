"""All trials, in the order of the table."""

from functools import partial

from benchmarks.nightly.bred import bred
from benchmarks.nightly.calls import reads, writes
from benchmarks.nightly.disks import disks
from benchmarks.nightly.fuzz import fuzz
from benchmarks.nightly.interrupts import interrupts
from benchmarks.nightly.kills import kills
from benchmarks.nightly.pushes import pushes
from benchmarks.nightly.races import races
from benchmarks.nightly.reports import reports
from benchmarks.nightly.soak import soak
from benchmarks.nightly.sources import changes
from benchmarks.nightly.trial import Trial
from benchmarks.nightly.wheels import wheels

TRIALS = (
    Trial("kills", "SIGKILL at a random moment of a merge", 50, kills),
    Trial("interrupts", "Ctrl-C at a random moment of the command", 50, interrupts),
    Trial("disks", "a disk that fills", 50, disks),
    Trial("writes", "a system call of the writer fails", 50, writes),
    Trial("reads", "a system call that looks at a source or reads it fails", 50, reads),
    Trial(
        "changes", "a source is cut, deleted, replaced or written to during the merge", 50, changes
    ),
    Trial("races", "four merges into one output at once", 25, races),
    Trial("pushes", "a push whose network fails at one of its steps", 28, pushes),
    Trial("soak", "merges in one process: memory within 5 %, descriptors flat", 1000, soak),
    Trial("wheels", "builds of the wheel, in other places at other times: equal bytes", 5, wheels),
    Trial("reports", "public bug reports", 172, reports),
    Trial("headers", "a safetensors header of anything", 9_000, partial(fuzz, "header")),
    Trial("configs", "an adapter_config.json that says anything", 8_000, partial(fuzz, "config")),
    Trial("recipes", "a recipe that asks for anything", 1_300, partial(fuzz, "recipe")),
    Trial(
        "models", "a base model whose index and config say anything", 3_000, partial(fuzz, "model")
    ),
    Trial("bred", "hostile files of every kind, bred by the code that they reach", 10_000, bred),
    Trial("keys", "tensors of any name, shape and dtype", 92_000, partial(fuzz, "keys")),
)
