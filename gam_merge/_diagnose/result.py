"""The base of comparisons and inspections: figures by part, a sheet of panels, an HTML report."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import write_file
from gam_merge._common.names import By, Grid, grid, group
from gam_merge._diagnose.panels import SCREEN, Heatmap, Sheet

_KINDS = ("png", "svg", "pdf")

PartT = TypeVar("PartT")  # figures of several modules together


class _Module(Protocol):
    @property
    def name(self) -> str: ...


class Result(ABC, Generic[PartT]):
    """The result of a diagnosis, module by module."""

    modules: tuple[_Module, ...]
    _template: ClassVar[str]  # of the HTML report

    @abstractmethod
    def _part(self, members: Sequence[int]) -> PartT:
        """Return the figures of the modules at these positions, taken together."""

    @abstractmethod
    def _sheet(self) -> Sheet:
        """Describe the panels of the plot and of the report."""

    def _values(self) -> dict[str, Any]:
        """Return what the template of the report refers to."""
        return {"result": self}

    @cached_property
    def total(self) -> PartT:
        """The figures of all modules together."""
        return self._part(range(len(self.modules)))

    def by(self, part: By) -> dict[str, PartT]:
        """Return the figures by "layer", "type" or "module", in natural order."""
        groups = group(self._names(), part)
        return {label: self._part(members) for label, members in groups.items()}

    def grid(self, figure: str, *, most: tuple[int, int] | None = None) -> Grid:
        """Return a figure that is a number, such as "norm", by layer and type of module.

        most: rows (types) and columns (layers); neighbours are averaged if there are more.
        """
        return grid(
            self._names(), lambda members: float(getattr(self._part(members), figure)), most
        )

    def _heatmap(self, title: str, figure: str) -> Heatmap:
        """Describe a heat map of a figure that fits a screen."""
        return Heatmap(title, self.grid(figure, most=SCREEN))

    def _names(self) -> list[str]:
        return [module.name for module in self.modules]

    def save_plot(self, path: str | PathLike[str]) -> Path:
        """Write all figures on one sheet, as .png, .svg or .pdf. Replaces an existing file.

        Needs matplotlib. Raises GamMergeError.
        """
        out = Path(path)
        kind = out.suffix.lower().removeprefix(".")
        if kind not in _KINDS:
            raise GamMergeError(
                f"{out}: the suffix of a figure must be one of {', '.join(_KINDS)}, got {kind!r}"
            )
        if not self.modules:
            raise GamMergeError(f"{out}: no figure without LoRA modules")
        try:
            from gam_merge._diagnose import drawing, figures
        except ImportError as error:
            raise _not_installed(error) from error
        content = BytesIO()
        drawing.save(figures.draw_sheet(self._sheet()), content, kind)
        return write_file(out, content.getvalue())

    def save_html(self, path: str | PathLike[str]) -> Path:
        """Write a report as one HTML file that loads nothing else. Replaces an existing file.

        Needs matplotlib and jinja2. Raises GamMergeError.
        """
        try:
            from gam_merge._diagnose import html
        except ImportError as error:
            raise _not_installed(error) from error
        panels = self._sheet().panels if self.modules else {}
        text = html.report(self._template, panels, **self._values())
        return write_file(Path(path), text.encode())


def _not_installed(error: ImportError) -> GamMergeError:
    return GamMergeError(f"figures and reports need {error.name}; pip install 'gam-merge[plot]'")
