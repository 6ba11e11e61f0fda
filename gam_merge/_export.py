"""Writes an adapter directory: whole or not at all.

All is written into a hidden sibling, synced to the disk and renamed, so a kill at any moment leaves the old state or
the new one.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from gam_merge._errors import GamMergeError
from gam_merge._formats.peft import CONFIG_NAME, WEIGHTS_NAME
from gam_merge._safetensors import SafetensorsWriter, TensorSpec, read_header

REPORT_NAME = "merge_report.json"
_OURS = {CONFIG_NAME, WEIGHTS_NAME, REPORT_NAME}  # the files that a merge writes, and may replace


class AdapterWriter:
    """The directory of a merged adapter while it is being written. As a context: left by an error, nothing stays.

    with AdapterWriter(out, specs, metadata, force=False) as writer:
        writer.write(key, tensor)  # every announced tensor, in any order
        writer.commit(config, report)
    """

    def __init__(
        self, out: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str], *, force: bool = False
    ) -> None:
        check_output(out, force=force)
        self._out, self._force = out, force
        try:
            out.absolute().parent.mkdir(parents=True, exist_ok=True)
            self._temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.gam-merge-", dir=out.absolute().parent))
            try:
                self._weights = SafetensorsWriter(self._temporary / WEIGHTS_NAME, specs, {**metadata, **_stamp()})
            except BaseException:  # Ctrl-C too: nobody is in the context yet, to clean up on leaving it
                shutil.rmtree(self._temporary, ignore_errors=True)
                raise
        except OSError as error:
            raise GamMergeError(f"{out}: cannot be created: {error.strerror}") from error

    def write(self, key: str, value: Tensor) -> None:
        """One tensor of the adapter. Raises GamMergeError if the disk takes no more."""
        try:
            self._weights.write(key, value)
        except OSError as error:
            raise GamMergeError(f"{self._out}: cannot write: {error.strerror}") from error

    def commit(self, config: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """Sync and rename: from here on the adapter is there."""
        self._weights.finish()
        try:
            for name, content in ((CONFIG_NAME, config), (REPORT_NAME, report)):
                text = json.dumps(content, indent=2, sort_keys=name == CONFIG_NAME, ensure_ascii=False) + "\n"
                (self._temporary / name).write_text(text, encoding="utf-8")
            self._temporary.chmod(0o777 & ~_umask())
            for path in (*self._temporary.iterdir(), self._temporary):
                _sync(path)
            _replace(self._temporary, self._out, force=self._force)
            _sync(self._out.absolute().parent)
        except OSError as error:
            raise GamMergeError(f"{self._out}: cannot write: {error.strerror}") from error

    def __enter__(self) -> "AdapterWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._weights.close()
        shutil.rmtree(self._temporary, ignore_errors=True)


def check_output(out: Path, *, force: bool) -> None:
    """Raises GamMergeError if a merge may not be written to ``out``."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise GamMergeError(f"{out}: exists already; choose another output or pass --force (force=True in Python)")
    if not out.is_dir() or out.is_symlink() or not _is_ours(out):
        raise GamMergeError(f"{out}: is not an empty directory or a merge that we wrote; --force does not replace it")


def _is_ours(directory: Path) -> bool:
    names = {path.name for path in directory.iterdir()}
    if not names:
        return True
    if not {WEIGHTS_NAME} <= names <= _OURS:
        return False
    _, metadata = read_header(directory / WEIGHTS_NAME)
    return "gam_merge.version" in metadata


def _stamp() -> dict[str, str]:
    return {"format": "pt", "gam_merge.version": version("gam-merge")}


def _replace(new: Path, out: Path, *, force: bool) -> None:
    """Rename ``new`` to ``out``; the old directory, if there is one, steps aside first and goes last."""
    if not out.exists():
        os.rename(new, out)
        return
    check_output(out, force=force)
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.gam-merge-", dir=out.absolute().parent))
    os.rename(out, old)
    os.rename(new, out)
    shutil.rmtree(old)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
