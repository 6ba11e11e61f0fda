"""The merge methods: rules, one per file, and the spaces and plug-ins that they are composed with.

A method is named ``[pre+...]rule[@space][+post...]``: ``gam``, ``ties@knots``, ``pico+tsvm``,
``iso_c+svc``. To add one, write a rule and list it in ``_catalogue``; from another package, write
it with ``gam_merge.rules`` and name it in the entry-point group ``gam_merge.methods``.
"""

from gam_merge._methods._method import Method as Method
from gam_merge._methods._registry import get_method as get_method
from gam_merge._methods._registry import methods as methods
