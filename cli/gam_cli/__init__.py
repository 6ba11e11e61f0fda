"""The command line of gam-merge: presents, never computes.

``_app`` knows the verbs, each a function in a file of its own; ``_options`` has the options that verbs share,
``_present`` all that they print with. A verb imports gam_merge and rich when it runs: help, version and usage errors
come without torch.
"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130  # exit code: 128 + SIGINT, as shells have it


def main() -> None:
    """Run the command line of this process and leave with its exit code: 0 done, 1 a known failure, 2 usage,
    130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(
                errors="backslashreplace"
            )  # a file name may hold what the terminal cannot encode
    if (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):  # a run in the background ignores it
        signal.signal(signal.SIGINT, _interrupt)
    try:
        try:
            from gam_cli._app import app

            app(prog_name="gam-merge")
        finally:
            signal.signal(
                signal.SIGINT, signal.SIG_IGN
            )  # the outcome is settled, and Python takes a while to leave
    except KeyboardInterrupt:
        _leave_interrupted()
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            _leave_interrupted()
        raise


def _interrupt(number: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt, once there may be something to clear away. Before the library is there it is the end at
    once: packages swallow exceptions while they are imported."""
    if hasattr(sys.modules.get("gam_merge"), "merge"):
        raise KeyboardInterrupt
    _leave_interrupted()


def _leave_interrupted() -> NoReturn:
    """At once: a thread that is still inside torch would abort an orderly end."""
    with suppress(OSError):
        os.write(2, b"interrupted\n")
        sys.stdout.flush()
    os._exit(INTERRUPTED)
