"""A command of the user as the score of an adapter: what it prints last."""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from gam_merge._common.errors import GamMergeError


def command_score(text: str) -> Callable[[Path], float]:
    """Runs the command, without a shell and with ``{adapter}`` replaced, for an adapter's directory; the last word that
    it prints is the score. Raises GamMergeError, as the score does if the command fails or prints no number."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise GamMergeError(f"the command {text!r} cannot be split into words: {error}") from error
    if not any("{adapter}" in word for word in words):
        raise GamMergeError(
            f"the command {text!r} does not say {{adapter}}, where the directory of the merge goes"
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
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise GamMergeError(f"{words[0]}: left with exit code {done.returncode}: {last}")
        word = (done.stdout.split() or [""])[-1]
        try:
            return float(word)
        except ValueError:
            raise GamMergeError(f"{words[0]}: printed {word!r} last, not a number") from None

    return evaluate
