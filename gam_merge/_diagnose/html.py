"""Reports as one HTML file: no network, no script, light and dark, all text from files escaped."""

import json
from collections.abc import Mapping
from functools import cache
from math import isnan
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from gam_merge._common.version import VERSION
from gam_merge._diagnose.panels import Panel
from gam_merge._diagnose.picture import picture_of


def report(template: str, panels: Mapping[str, Panel], **values: Any) -> str:
    """Return the text of a report: a template of this package with its figures and values."""
    figures = {name: picture_of(panel) for name, panel in panels.items()}
    return _environment().get_template(template).render(version=VERSION, figures=figures, **values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gam_merge", "_diagnose/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "figure3": lambda x: _number(x, "{:.3f}"),
        "figure1": lambda x: _number(x, "{:.1f}"),
        "digits4": lambda x: _number(x, "{:#.4g}"),
        "percent": lambda x: _number(100 * x, "{:.1f} %"),
        "pixels": lambda x: f"{x:.1f}".removesuffix(".0"),
        "sentence": lambda text: text[:1].upper() + text[1:],
        "as_json": lambda value: json.dumps(value, ensure_ascii=False),  # and escaped like text
    }
    return environment


def _number(value: Any, form: str) -> str:
    return "-" if isnan(value) else form.format(float(value))
