"""Checks of a request: alphas, weights and anchor against the number and names of the sources."""

from collections.abc import Sequence
from typing import get_args

from gam_merge._common.errors import GamMergeError
from gam_merge._common.types import Setting
from gam_merge._lineup.options import Missing


def alphas_of(alpha: float | Sequence[float] | None, count: int) -> list[float | None]:
    """Return one alpha per source. Raises GamMergeError."""
    if not isinstance(alpha, Sequence):
        return [alpha] * count
    if len(alpha) == 1:
        return [alpha[0]] * count
    if len(alpha) != count:
        raise GamMergeError(
            f"got {len(alpha)} alphas for {count} adapters; give one, or one for each"
        )
    return list(alpha)


def weights_of(weights: Sequence[Setting] | None, count: int) -> list[Setting]:
    """Return one weight per source, equal if none are given. Raises GamMergeError."""
    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise GamMergeError(f"got {len(weights)} weights for {count} adapters; give one for each")
    if all(weight == 0 for weight in weights):
        raise GamMergeError(f"all {count} weights are zero; there is nothing to merge")
    return list(weights)


def check_missing(missing: Missing | None) -> None:
    """Raise GamMergeError for a value that is not one of the two."""
    if missing is not None and missing not in get_args(Missing):
        raise GamMergeError(f"missing must be 'zero' or 'skip', got {missing!r}")


def anchor_position(anchor: int | str, names: Sequence[str], weights: Sequence[Setting]) -> int:
    """Return the position of the anchor among the sources. Raises GamMergeError."""
    position = anchor
    if isinstance(anchor, str) and anchor in names:
        position = names.index(anchor)
    elif isinstance(anchor, str) and anchor.isdecimal():
        position = int(anchor)
    if not isinstance(position, int) or not 0 <= position < len(names):
        hint = "; -m gam -p anchor=mean aligns gam to their mean" if anchor == "mean" else ""
        raise GamMergeError(
            f"anchor must be a position from 0 or one of the sources {names}, got {anchor!r}{hint}"
        )
    if weights[position] != 0:
        return position
    if len(weights) > 1 and position == 0:  # the default: the first that takes part
        return next(i for i, weight in enumerate(weights) if weight != 0)
    raise GamMergeError(f"anchor {names[position]} has weight zero; choose another")
