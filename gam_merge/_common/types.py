"""Types that the arguments of several verbs share."""

from collections.abc import Callable
from typing import Any

Progress = Callable[[int, int], None]  # modules done, modules in all
Setting = Any  # one value for all modules, or one that differs: see ``_lineup.settings``
