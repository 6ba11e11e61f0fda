"""Figures and reports as files. They need matplotlib and jinja2, the extra ``plot``; all else does without."""

import os
import secrets
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from gam_merge._errors import GamMergeError

if TYPE_CHECKING:
    from gam_merge._comparison import Comparison
    from gam_merge._inspection import Inspection

_KINDS = ("png", "svg", "pdf")


def save_plot(found: "Comparison | Inspection", path: str | PathLike[str]) -> Path:
    """All figures on one sheet, as the suffix of the path says. An existing file is replaced. Raises GamMergeError."""
    out = Path(path)
    kind = out.suffix.lower().removeprefix(".")
    if kind not in _KINDS:
        raise GamMergeError(f"{out}: a figure is one of {', '.join(_KINDS)}, by the suffix of its name")
    if not found.modules:
        raise GamMergeError(f"{out}: no figure without LoRA modules")
    try:
        from gam_merge import _figures as figures
    except ImportError as error:
        raise _missing(error) from error
    content = BytesIO()
    figures.save(figures.sheet(found), content, kind)
    return _write(out, content.getvalue())


def save_html(found: "Comparison | Inspection", path: str | PathLike[str]) -> Path:
    """A report of one HTML file, figures and all. An existing file is replaced. Raises GamMergeError."""
    try:
        from gam_merge import _html as html
    except ImportError as error:
        raise _missing(error) from error
    return _write(Path(path), html.report(found).encode())


def _missing(error: ImportError) -> GamMergeError:
    return GamMergeError(f"figures and reports need {error.name}; pip install 'gam-merge[plot]'")


def _write(path: Path, content: bytes) -> Path:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be written: {error.strerror}") from error
    return path
