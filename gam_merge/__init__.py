"""LoRA adapters in, one LoRA adapter out: aligned, merged, measured and explained.

All of it from the adapter files alone. Authors of merge methods import ``gam_merge.rules``.
"""

import typing as _typing

from gam_merge._common.errors import GamMergeError as GamMergeError
from gam_merge._common.names import Grid as Grid
from gam_merge._common.version import VERSION as _VERSION
from gam_merge._load import load as load
from gam_merge._merge import MergeResult as MergeResult
from gam_merge._merge import merge as merge
from gam_merge._methods import Method as Method
from gam_merge._methods import get_method as get_method
from gam_merge._methods import methods as methods
from gam_merge._methods._registry import plugins as plugins
from gam_merge._methods._registry import spaces as spaces
from gam_merge._plan import MergePlan as MergePlan
from gam_merge._plan import plan as plan
from gam_merge._read.adapter import Adapter as Adapter
from gam_merge._read.adapter import LoraModule as LoraModule
from gam_merge._read.hub_id import HubId as HubId
from gam_merge._run.estimate import Estimate as Estimate
from gam_merge._run.report import MergeReport as MergeReport
from gam_merge._run.report import ModuleReport as ModuleReport

__version__ = _VERSION

if _typing.TYPE_CHECKING:
    from gam_merge._verbs import *  # noqa: F403 - a list of names, and no code
else:  # a type checker would accept any name

    def __getattr__(name: str) -> object:
        """Names of verbs other than a merge, which take a while to import; names that moved."""
        import gam_merge._verbs as verbs

        if hasattr(verbs, name):
            return getattr(verbs, name)
        moved = ("Bucket", "Coefficients", "Core", "Entries", "InCore", "Merged", "Range", "rule")
        if name not in moved:
            raise AttributeError(f"module 'gam_merge' has no attribute {name!r}")
        import warnings

        from gam_merge import rules

        warnings.warn(
            f"gam_merge.{name} has moved to gam_merge.rules.{name}",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(rules, name)

    def __dir__() -> list[str]:
        import gam_merge._verbs as verbs

        return sorted({*globals(), *vars(verbs)})
