"""Docstrings and signatures as Python has them at run time: an extension of griffe for the site.

griffe reads source text. Functions under ``explicit`` get their options, one by one, when they are
imported; and Google's section ``Example:`` is a session only under the name ``Examples:``.
"""

import importlib
import inspect
import re
from typing import Any

import griffe

_MODULES = re.compile(r"\b(?:collections|concurrent|gam_merge|os|typing)\.(?:\w+\.)*(?=[A-Z])")

_KINDS = {
    inspect.Parameter.POSITIONAL_OR_KEYWORD: griffe.ParameterKind.positional_or_keyword,
    inspect.Parameter.KEYWORD_ONLY: griffe.ParameterKind.keyword_only,
}


class RunTime(griffe.Extension):
    """Replaces what decorators replace."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        decorators = [str(decorator.value) for decorator in func.decorators]
        if not any(decorator.startswith("explicit(") for decorator in decorators):
            return
        function = getattr(importlib.import_module(func.module.path), func.name)
        assert func.docstring is not None
        func.docstring.value = inspect.getdoc(function) or ""
        signature = inspect.signature(function)
        func.parameters = griffe.Parameters(*map(_shown, signature.parameters.values()))

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")


def _shown(parameter: inspect.Parameter) -> griffe.Parameter:
    required = parameter.default is inspect.Parameter.empty
    return griffe.Parameter(
        parameter.name,
        annotation=_MODULES.sub("", inspect.formatannotation(parameter.annotation)),
        kind=_KINDS[parameter.kind],
        default=None if required else repr(parameter.default),
    )
