"""Texts of fields become arguments of the library."""

from typing import Any

import gam_merge as gm


def weights_in(text: str) -> list[float] | None:
    """Return the numbers in a text, None if there are none. Raises GamMergeError."""
    words = text.replace(",", " ").split()
    try:
        return [float(word) for word in words] or None
    except ValueError:
        raise gm.GamMergeError(f"weights must be numbers such as 0.7 0.3, got {text!r}") from None


def params_in(text: str) -> dict[str, Any]:
    """Return the lines NAME=VALUE of a text. Raises GamMergeError."""
    params: dict[str, Any] = {}
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        if not line.strip():
            continue
        if not (name.strip() and equals):
            raise gm.GamMergeError(f"a parameter must be NAME=VALUE, got {line!r}")
        params[name.strip()] = value.strip()
    return params


def rank_in(text: str) -> int | None:
    """Return the whole number in a text, None if there is none. Raises GamMergeError."""
    if not text.strip():
        return None
    try:
        return int(text)
    except ValueError:
        raise gm.GamMergeError(f"rank must be a positive integer, got {text!r}") from None
