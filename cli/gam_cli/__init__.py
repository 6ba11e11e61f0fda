"""The command line of gam-merge: presents, never computes.

``_app`` knows the verbs, each a function in a file of its own; ``_options`` has the options that verbs share,
``_present`` all that they print with. A verb imports gam_merge and rich when it runs: help, version and usage errors
come without torch.
"""

import os
import sys
from contextlib import suppress

INTERRUPTED = 130  # exit code: 128 + SIGINT, as shells have it


def main() -> None:
    """Run the command line of this process and leave with its exit code: 0 done, 1 a known failure, 2 usage,
    130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot encode
    try:
        from gam_cli._app import app

        app(prog_name="gam-merge")
    except KeyboardInterrupt:  # before the verb
        sys.stderr.write("interrupted\n")
        os._exit(INTERRUPTED)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # a thread that is still inside torch would abort an orderly end
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(INTERRUPTED)
        raise
