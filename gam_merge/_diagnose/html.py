"""Reports as one HTML file: no network, no script, light and dark, everything from files escaped."""

import json
from itertools import combinations
from math import isnan
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from gam_merge._common.version import VERSION
from gam_merge._diagnose.comparison import Comparison
from gam_merge._diagnose.figures import comparison_panels, inline_svg, inspection_panels
from gam_merge._diagnose.inspection import Inspection

_WIDE, _NARROW = (10.5, 2.9), (5.0, 3.6)  # inches


def report(found: Comparison | Inspection) -> str:
    """The text of the file."""
    return _comparison(found) if isinstance(found, Comparison) else _inspection(found)


def _comparison(found: Comparison) -> str:
    everyone = range(len(found.sources))
    return _render(
        "comparison.html",
        found=found,
        figures={name: _svg(name, draw) for name, draw in comparison_panels(found).items()},
        held=[sum(bool(module.ranks[i]) for module in found.modules) for i in everyone],
        pairs=[(pair, found.total.pair(*pair)) for pair in combinations(everyone, 2)],
    )


def _inspection(found: Inspection) -> str:
    panels = inspection_panels(found) if found.modules else {}
    figures = {name: _svg(name, draw) for name, draw in panels.items()}
    return _render("inspection.html", found=found, figures=figures)


def _svg(name: str, draw: Any) -> str:
    wide = name in ("u", "v", "norm", "rank")
    return inline_svg(draw, _WIDE if wide else _NARROW, prefix=name)


def _render(template: str, **values: Any) -> str:
    loader = PackageLoader("gam_merge", "_diagnose/templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "figure3": lambda x: _known(x, "{:.3f}"),
        "figure1": lambda x: _known(x, "{:.1f}"),
        "digits4": lambda x: _known(x, "{:#.4g}"),
        "percent": lambda x: _known(100 * x, "{:.1f} %"),
        "sentence": lambda text: text[:1].upper() + text[1:],
        "tojson_plain": lambda value: json.dumps(
            value, ensure_ascii=False
        ),  # escaped like any other text
    }
    return environment.get_template(template).render(version=VERSION, **values)


def _known(value: Any, form: str) -> str:
    return "-" if isnan(value) else form.format(float(value))
