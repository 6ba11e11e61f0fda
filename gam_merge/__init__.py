"""LoRA adapters in, one LoRA adapter out: aligned, merged, measured and explained, from the adapter files alone."""

from importlib.metadata import version as _version

from gam_merge._adapter import Adapter as Adapter
from gam_merge._adapter import LoraModule as LoraModule
from gam_merge._average import average_checkpoints as average_checkpoints
from gam_merge._batch import BatchItem as BatchItem
from gam_merge._batch import batch as batch
from gam_merge._bucket import Bucket as Bucket
from gam_merge._bucket import Merged as Merged
from gam_merge._compare import compare as compare
from gam_merge._comparison import Comparison as Comparison
from gam_merge._comparison import ModuleComparison as ModuleComparison
from gam_merge._core import Core as Core
from gam_merge._core import InCore as InCore
from gam_merge._edit import FusedModule as FusedModule
from gam_merge._errors import GamMergeError as GamMergeError
from gam_merge._estimate import Estimate as Estimate
from gam_merge._extract import ExtractedModule as ExtractedModule
from gam_merge._extract import ExtractReport as ExtractReport
from gam_merge._extract import ExtractResult as ExtractResult
from gam_merge._extract import extract as extract
from gam_merge._fuse import FuseReport as FuseReport
from gam_merge._fuse import fuse as fuse
from gam_merge._grouping import Grid as Grid
from gam_merge._inspect import inspect as inspect
from gam_merge._inspection import Inspection as Inspection
from gam_merge._inspection import ModuleInspection as ModuleInspection
from gam_merge._inspection import Part as Part
from gam_merge._journal import Trial as Trial
from gam_merge._measures import Measures as Measures
from gam_merge._merge import MergeResult as MergeResult
from gam_merge._merge import merge as merge
from gam_merge._merge_recipe import merge_recipe as merge_recipe
from gam_merge._merge_recipe import plan_recipe as plan_recipe
from gam_merge._methods import Coefficients as Coefficients
from gam_merge._methods import Entries as Entries
from gam_merge._methods import Method as Method
from gam_merge._methods import Range as Range
from gam_merge._methods import get_method as get_method
from gam_merge._methods import methods as methods
from gam_merge._methods import rule as rule
from gam_merge._push import push as push
from gam_merge._recipe import recipe_schema as recipe_schema
from gam_merge._report import MergeReport as MergeReport
from gam_merge._report import ModuleReport as ModuleReport
from gam_merge._request import MergePlan as MergePlan
from gam_merge._request import plan as plan
from gam_merge._resize import resize as resize
from gam_merge._search import SearchResult as SearchResult
from gam_merge._search import search as search
from gam_merge._sources import load as load
from gam_merge._state_dict import from_state_dict as from_state_dict
from gam_merge._state_dict import merge_state_dicts as merge_state_dicts
from gam_merge._state_dict import state_dict as state_dict

__version__ = _version("gam-merge")
