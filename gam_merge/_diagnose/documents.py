"""Figures and reports as files. They need matplotlib and jinja2, the extra ``plot``; all else does without."""

from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import write_file

if TYPE_CHECKING:
    from gam_merge._diagnose.comparison import Comparison
    from gam_merge._diagnose.inspection import Inspection

_KINDS = ("png", "svg", "pdf")


def save_plot(found: "Comparison | Inspection", path: str | PathLike[str]) -> Path:
    """All figures on one sheet, as the suffix of the path says. An existing file is replaced. Raises GamMergeError."""
    out = Path(path)
    kind = out.suffix.lower().removeprefix(".")
    if kind not in _KINDS:
        raise GamMergeError(
            f"{out}: a figure is one of {', '.join(_KINDS)}, by the suffix of its name"
        )
    if not found.modules:
        raise GamMergeError(f"{out}: no figure without LoRA modules")
    try:
        from gam_merge._diagnose import figures
    except ImportError as error:
        raise _missing(error) from error
    content = BytesIO()
    figures.save(figures.sheet(found), content, kind)
    return write_file(out, content.getvalue())


def save_html(found: "Comparison | Inspection", path: str | PathLike[str]) -> Path:
    """A report of one HTML file, figures and all. An existing file is replaced. Raises GamMergeError."""
    try:
        from gam_merge._diagnose import html
    except ImportError as error:
        raise _missing(error) from error
    return write_file(Path(path), html.report(found).encode())


def _missing(error: ImportError) -> GamMergeError:
    return GamMergeError(f"figures and reports need {error.name}; pip install 'gam-merge[plot]'")
