"""Results of the library as HTML, by templates in which all text is escaped."""

from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.filesize import decimal

import gam_merge as gm

_ENVIRONMENT = Environment(
    loader=PackageLoader("gam_ui", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "digits4": lambda value: f"{value:#.4g}".removesuffix("."),
    "percent": lambda share: f"{100 * share:.1f} %",
    "size": decimal,
    "span": lambda values: "..".join(map(str, sorted({min(values), max(values)}))),
    "sentence": lambda text: text[:1].upper() + text[1:],
}


def render(template: str, **values: Any) -> str:
    """Return a template of this package with values in it."""
    return _ENVIRONMENT.get_template(template).render(**values)


def report(result: gm.Comparison | gm.Inspection) -> str:
    """Return the HTML report of a result in a frame that runs no script."""
    with TemporaryDirectory() as folder:
        file = result.save_html(Path(folder) / "report.html")
        text = file.read_text("utf-8")
    return f'<iframe class="report" title="Report" sandbox srcdoc="{escape(text)}"></iframe>'
