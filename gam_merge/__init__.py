"""LoRA adapters in, one LoRA adapter out: aligned, merged, measured and explained.

All of it from the adapter files alone. Authors of merge methods import ``gam_merge.rules``.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from gam_merge._batch import BatchItem as BatchItem
from gam_merge._batch import batch as batch
from gam_merge._checkpoints import average_checkpoints as average_checkpoints
from gam_merge._common.errors import GamMergeError as GamMergeError
from gam_merge._common.names import Grid as Grid
from gam_merge._common.version import VERSION as _VERSION
from gam_merge._compare import compare as compare
from gam_merge._convert import convert as convert
from gam_merge._diagnose.comparison import Comparison as Comparison
from gam_merge._diagnose.comparison import ModuleComparison as ModuleComparison
from gam_merge._diagnose.inspection import Inspection as Inspection
from gam_merge._diagnose.inspection import ModuleInspection as ModuleInspection
from gam_merge._diagnose.inspection import Part as Part
from gam_merge._diagnose.measures import Measures as Measures
from gam_merge._extract import ExtractedModule as ExtractedModule
from gam_merge._extract import ExtractReport as ExtractReport
from gam_merge._extract import ExtractResult as ExtractResult
from gam_merge._extract import extract as extract
from gam_merge._fuse import FuseReport as FuseReport
from gam_merge._fuse import fuse as fuse
from gam_merge._inspect import inspect as inspect
from gam_merge._load import load as load
from gam_merge._merge import MergeResult as MergeResult
from gam_merge._merge import merge as merge
from gam_merge._methods import Method as Method
from gam_merge._methods import get_method as get_method
from gam_merge._methods import methods as methods
from gam_merge._methods._registry import plugins as plugins
from gam_merge._methods._registry import spaces as spaces
from gam_merge._models.edit import FusedModule as FusedModule
from gam_merge._plan import MergePlan as MergePlan
from gam_merge._plan import plan as plan
from gam_merge._push import push as push
from gam_merge._read.adapter import Adapter as Adapter
from gam_merge._read.adapter import LoraModule as LoraModule
from gam_merge._read.hub_id import HubId as HubId
from gam_merge._recipe import merge_recipe as merge_recipe
from gam_merge._recipe import plan_recipe as plan_recipe
from gam_merge._recipes.recipe import recipe_schema as recipe_schema
from gam_merge._resize import resize as resize
from gam_merge._result_schema import result_schema as result_schema
from gam_merge._run.estimate import Estimate as Estimate
from gam_merge._run.report import MergeReport as MergeReport
from gam_merge._run.report import ModuleReport as ModuleReport
from gam_merge._search import SearchResult as SearchResult
from gam_merge._search import search as search
from gam_merge._state_dict import from_state_dict as from_state_dict
from gam_merge._state_dict import merge_state_dicts as merge_state_dicts
from gam_merge._state_dict import state_dict as state_dict
from gam_merge._trials.journal import Trial as Trial
from gam_merge._verify import Check as Check
from gam_merge._verify import Verification as Verification
from gam_merge._verify import verify as verify

__version__ = _VERSION

if not _TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> object:
        """Names that have moved to ``gam_merge.rules``, for one release."""
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
