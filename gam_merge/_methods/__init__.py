"""The merge methods: rules, one a file, and the spaces and plug-ins that they are composed with.

A method is named ``[pre+...]rule[@space][+post...]``: ``gam``, ``ties@knots``, ``pico+tsvm``, ``iso_c+svc``. To add
one, write a rule and list it in ``_catalogue``; from another package, name it under the entry-point group
``gam_merge.methods``.
"""

from gam_merge._methods._entries import Entries as Entries
from gam_merge._methods._method import Method as Method
from gam_merge._methods._registry import get_method as get_method
from gam_merge._methods._registry import methods as methods
from gam_merge._methods._registry import plugins as plugins
from gam_merge._methods._registry import spaces as spaces
from gam_merge._methods._rule import Coefficients as Coefficients
from gam_merge._methods._rule import rule as rule
from gam_merge._methods._schema import Range as Range
