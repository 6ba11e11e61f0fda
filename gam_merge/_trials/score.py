"""A command of the user as the score of an adapter: the last word that it prints."""

import shlex
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from gam_merge._common.errors import GamMergeError


def command_score(text: str) -> Callable[[Path], float]:
    """Return a score that runs a command.

    text: the command, with ``{adapter}`` where the directory of the adapter goes. It is run without
    a shell; the last word that it prints is the score.

    Raises GamMergeError, as the score does if the command fails or prints no number.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise GamMergeError(f"the command {text!r} cannot be split into words: {error}") from error
    if not any("{adapter}" in word for word in words):
        raise GamMergeError(
            f"the command {text!r} must contain {{adapter}}, where the directory of the merge goes"
        )
    return partial(_score, words)


def _score(words: Sequence[str], adapter: Path) -> float:
    command = [word.replace("{adapter}", str(adapter)) for word in words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        raise GamMergeError(f"{words[0]}: cannot be run: {error.strerror}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        last = f": {lines[-1]}" if lines else " and printed nothing"
        raise GamMergeError(f"{words[0]}: exited with code {done.returncode}{last}")
    printed = done.stdout.split()
    last_word = printed[-1] if printed else ""
    try:
        return float(last_word)
    except ValueError:
        raise GamMergeError(f"{words[0]}: printed {last_word!r} last, not a number") from None
