"""The command line of gam-merge: presents, never computes.

``_app`` knows the verbs, each a function in a file of its own; ``_options`` has the options that
verbs share, ``_present`` all that they print with. A verb imports gam_merge and rich when it runs:
help, version and usage errors come without torch.
"""

import gc
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130  # exit code: 128 + SIGINT, as in shells
# New objects between two searches for garbage: the imports make 180,000 that stay.
_YOUNG = 50_000


def main() -> None:
    """Run the command line and leave with its exit code.

    0 is success, 1 a known failure, 2 a usage error, 130 an interruption.
    """
    for stream in (sys.stdout, sys.stderr):
        # a file name may hold what the terminal cannot encode
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    # a process in the background ignores SIGINT, and goes on doing so
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    gc.set_threshold(_YOUNG)
    try:
        try:
            from gam_cli._app import app

            app(prog_name="gam-merge")
        finally:
            # the outcome is settled, and Python takes a while to leave, less without a last search
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            gc.freeze()
    except KeyboardInterrupt:
        _leave_interrupted()
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            _leave_interrupted()
        raise


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt once there may be something to clear away.

    Before the library is loaded, leave at once: packages that are imported swallow exceptions.
    """
    if hasattr(sys.modules.get("gam_merge"), "merge"):
        raise KeyboardInterrupt
    _leave_interrupted()


def _leave_interrupted() -> NoReturn:
    """Leave at once: a thread that is still inside torch would abort an orderly exit."""
    with suppress(OSError):
        os.write(2, b"interrupted\n")
        sys.stdout.flush()
    os._exit(INTERRUPTED)
