"""The command line as a user meets it: a process of its own, in a pipe or in a terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

ESCAPE = "\x1b"


def run(args: Sequence[str | Path], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """``python -m gam_merge`` in a pipe."""
    command = [sys.executable, "-m", "gam_merge", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=120
    )


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")
    }
    return {**kept, "TERM": "xterm-256color", **more}


def run_in_terminal(args: Sequence[str | Path], cwd: Path, **env: str) -> tuple[int, str]:
    """The exit code, and all that a terminal of 80 columns was sent."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "gam_merge", *map(str, args)]
    process = subprocess.Popen(
        command, cwd=cwd, env=environment(**env), stdin=end, stdout=end, stderr=end
    )
    os.close(end)
    sent = b""
    try:
        while chunk := os.read(terminal, 4096):
            sent += chunk
    except OSError:  # EIO: the other end is closed
        pass
    os.close(terminal)
    return process.wait(timeout=120), sent.decode()
