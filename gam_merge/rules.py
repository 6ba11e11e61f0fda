"""The public place for authors of merge methods: rules, spaces and plug-ins.

``docs/methods.md`` has an example of each. To run under its name, in Python and on the command
line, a rule, space or plug-in is listed in the entry points of an installed package:

    [project.entry-points."gam_merge.methods"]
    loudest = "your_package:loudest"
"""

from gam_merge._deltas.bucket import Bucket as Bucket
from gam_merge._deltas.bucket import Merged as Merged
from gam_merge._deltas.core import Core as Core
from gam_merge._deltas.core import InCore as InCore
from gam_merge._deltas.core import significant as significant
from gam_merge._deltas.core import weighted_sum as weighted_sum
from gam_merge._methods._entries import Blocks as Blocks
from gam_merge._methods._entries import Density as Density
from gam_merge._methods._entries import Entries as Entries
from gam_merge._methods._entries import Part as Part
from gam_merge._methods._entries import Scope as Scope
from gam_merge._methods._entries import Seed as Seed
from gam_merge._methods._entries import View as View
from gam_merge._methods._rule import Choice as Choice
from gam_merge._methods._rule import Coefficients as Coefficients
from gam_merge._methods._rule import CoreRule as CoreRule
from gam_merge._methods._rule import plugin as plugin
from gam_merge._methods._rule import rule as rule
from gam_merge._methods._rule import space as space
from gam_merge._methods._schema import Range as Range
