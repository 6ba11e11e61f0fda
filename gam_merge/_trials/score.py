"""The score of an adapter by a command of the user, which prints it last."""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from gam_merge._common.errors import GamMergeError


def command_score(text: str) -> Callable[[Path], float]:
    """Return a function that runs the command for the directory of an adapter.

    It runs without a shell, with ``{adapter}`` replaced; the last word that it prints is the score.
    Raises GamMergeError. So does the function if the command fails or prints no number.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise GamMergeError(f"the command {text!r} cannot be split into words: {error}") from error
    if not any("{adapter}" in word for word in words):
        raise GamMergeError(
            f"the command {text!r} must contain {{adapter}}, which stands for the merge's directory"
        )

    def evaluate(adapter: Path) -> float:
        command = [word.replace("{adapter}", str(adapter)) for word in words]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
            )
        except OSError as error:
            raise GamMergeError(f"{words[0]}: cannot be run: {error.strerror}") from error
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            outcome = f": {lines[-1]}" if lines else " and printed nothing to stderr"
            raise GamMergeError(f"{words[0]}: exited with code {done.returncode}{outcome}")
        word = (done.stdout.split() or [""])[-1]
        try:
            return float(word)
        except ValueError:
            raise GamMergeError(f"{words[0]}: printed {word!r} last, not a number") from None

    return evaluate
