"""All trials, in the order of the table."""

from benchmarks.nightly.kills import kills
from benchmarks.nightly.trial import Trial

TRIALS = (Trial("kills", "SIGKILL at a random moment of a merge", 50, kills),)
