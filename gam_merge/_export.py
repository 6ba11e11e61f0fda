"""Writes an adapter directory: whole or not at all."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from torch import Tensor

from gam_merge._errors import GamMergeError
from gam_merge._formats.peft import CONFIG_NAME, WEIGHTS_NAME
from gam_merge._safetensors import SafetensorsWriter, TensorSpec, read_header
from gam_merge._staging import staged

REPORT_NAME, RECIPE_NAME = "merge_report.json", "gam_merge_recipe.yaml"
_OURS = {CONFIG_NAME, WEIGHTS_NAME, REPORT_NAME, RECIPE_NAME}  # the files that a merge writes, and may replace
_STAMP = "gam_merge.version"  # the metadata by which we know our own weights


class AdapterWriter:
    """The directory of a merged adapter while it is being written. A context: left by an error, nothing stays.

    with AdapterWriter(out, specs, metadata, force=False) as writer:
        writer.write(key, tensor)  # every announced tensor, in any order
        writer.commit(texts)

    All of it raises GamMergeError: for an output that exists, a disk that takes no more.
    """

    def __init__(
        self, out: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str], *, force: bool = False
    ) -> None:
        self._out, self._specs, self._force = out, specs, force
        self._metadata = {**metadata, "format": "pt", _STAMP: version("gam-merge")}

    def __enter__(self) -> "AdapterWriter":
        with _naming(self._out), ExitStack() as stack:
            self._staging = stack.enter_context(staged(self._out.resolve()))
            check_output(self._out, force=self._force)
            weights = SafetensorsWriter(self._staging.new / WEIGHTS_NAME, self._specs, self._metadata)
            self._weights = stack.enter_context(closing(weights))
            self._stack = stack.pop_all()
        return self

    def write(self, key: str, value: Tensor) -> None:
        """One tensor of the adapter."""
        with _naming(self._out):
            self._weights.write(key, value)

    def commit(self, texts: Mapping[str, str]) -> None:
        """From here on the adapter is there, with the files ``texts`` (name -> content) beside the weights.

        The config should be the last of them: without it no reader takes the rest for whole.
        """
        with _naming(self._out):
            self._weights.finish()
            for name, text in texts.items():
                (self._staging.new / name).write_text(text, encoding="utf-8")
            check_output(self._out, force=self._force)  # it may have changed while we were at work
            self._staging.commit(replace=self._force)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _naming(self._out):
            self._stack.__exit__(kind, error, trace)


def check_output(out: Path, *, force: bool) -> None:
    """Raises GamMergeError if a merge may not be written to ``out``."""
    with _naming(out):
        if not out.exists() and not out.is_symlink():
            return
        if not force:
            raise GamMergeError(f"{out}: exists already; choose another output or pass --force (force=True in Python)")
        if out.is_symlink() or not out.is_dir() or not _is_ours(out):
            raise GamMergeError(
                f"{out}: is not an empty directory or a merge that we wrote; --force does not replace it"
            )


def _is_ours(directory: Path) -> bool:
    """Whether it holds nothing, or nothing but files of a merge."""
    paths = list(directory.iterdir())
    if not paths:
        return True
    if not all(path.name in _OURS and path.is_file() for path in paths) or directory / WEIGHTS_NAME not in paths:
        return False
    try:
        _, metadata = read_header(directory / WEIGHTS_NAME)
    except GamMergeError:
        return False
    return _STAMP in metadata


@contextmanager
def _naming(out: Path) -> Iterator[None]:
    """Errors of the file system as errors of this output."""
    try:
        yield
    except OSError as error:
        raise GamMergeError(f"{out}: cannot be written: {error.strerror}; choose another output") from error
