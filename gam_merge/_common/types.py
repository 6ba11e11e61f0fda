"""Types that the arguments of several verbs share."""

import sys
from collections.abc import Callable
from typing import Any, TypeGuard

Progress = Callable[[int, int], None]  # modules done, modules in all
Setting = Any  # one value for all modules, or one that differs: see ``_lineup.settings``


def is_number(value: Any) -> TypeGuard[int | float]:
    """Tell whether a value is a finite number, and not a bool."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max
