"""Types that the arguments of several verbs share."""

import sys
from collections.abc import Callable
from typing import Any, Literal, TypeGuard

Progress = Callable[[int, int], None]  # done, in all: of modules, tensors or trials
Setting = Any  # one value for all modules, or one that differs: see ``_lineup.settings``
NativeRank = Literal["largest", "sum"]  # of a result before any cut: of the sources' ranks


def is_number(value: Any) -> TypeGuard[int | float]:
    """Tell whether a value is a finite number, and not a bool."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max
