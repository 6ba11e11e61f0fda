"""Single files: read as tables, known by their sha256, written whole or not at all."""

import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from gam_merge._common.errors import GamMergeError

_MAX_BYTES = 1 << 25  # of a text: indices of the largest models are half of it
# JSON becomes Python's tables and texts, up to 130 bytes for each of its marks: with this limit less than 1 GB.
MAX_MARKS = 5_000_000


def read_text(path: Path, *, piped: bool = False) -> str:
    """In UTF-8. ``piped``: what the user named may be a pipe. Raises GamMergeError."""
    try:
        return _read(path, piped=piped).decode()
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise GamMergeError(f"{path}: is not UTF-8 text") from error


def _read(path: Path, *, piped: bool = False) -> bytes:
    """All of a file that is not too long."""
    if "\0" in str(path):
        raise GamMergeError(f"{path}: cannot be read: its name holds what no path may")
    if not piped:
        check_ends(path)
    content = bytearray()
    with open(path, "rb") as file:
        while piece := file.read(1 << 16):  # a pipe does not know its size, and memory may be short
            content += piece
            if len(content) > _MAX_BYTES:
                raise GamMergeError(
                    f"{path}: has more than {_MAX_BYTES} bytes, which no such file needs"
                )
    return bytes(content)


def check_ends(path: Path) -> None:
    """Raises GamMergeError for a pipe or a device, which never ends: a stranger's file may be, or link to, one."""
    kind = path.stat().st_mode
    if not (S_ISREG(kind) or S_ISDIR(kind)):
        raise GamMergeError(f"{path}: is no regular file")


def read_json(path: Path, *, hint: str = "") -> dict[str, Any]:
    """The table that a JSON file holds. Raises GamMergeError; if there is none to read, with the hint."""
    try:
        raw = _read(path)
        if marks(raw) > MAX_MARKS:
            raise GamMergeError(
                f"{path}: has more than {MAX_MARKS} values and names, which no such file needs"
            )
        content = json.loads(raw)
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}{hint}") from error
    except (ValueError, RecursionError) as error:
        raise GamMergeError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise GamMergeError(f"{path}: is not a table of settings")
    return content


def marks(raw: bytes) -> int:
    """Braces, brackets, commas and colons of a JSON text: as many as it has values and names, or more."""
    return sum(map(raw.count, b"{[,:"))


def is_there(path: Path) -> bool:
    """Whether anything is at a path. Raises GamMergeError for one that cannot be looked at: too long, in a folder that
    is closed to us, or in a loop of links."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise GamMergeError(f"{path}: cannot be read: its name holds what no path may") from error
    return True


@dataclass(frozen=True)
class FileVersion:
    """Tells a file from what was, or will be, at the same path."""

    inode: int
    nbytes: int
    modified: int  # ns

    @classmethod
    def of(cls, path: Path) -> "FileVersion":
        """Raises GamMergeError if there is no such file."""
        try:
            stat = path.stat()
        except OSError as error:
            raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns)


def check_unchanged(path: Path, version: FileVersion) -> None:
    """Raises GamMergeError if the file is not the one that it was."""
    if FileVersion.of(path) != version:
        raise GamMergeError(
            f"{path}: changed since it was opened; run again when nothing writes to it"
        )


def sha256(path: Path, version: FileVersion | None = None) -> str:
    """Of the content, in hexadecimal; computed once while the file stays as it is. Raises GamMergeError, for a file
    that is not in the given version too."""
    version = version or FileVersion.of(path)
    check_unchanged(path, version)
    try:
        digest = _sha256(path, version)
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error
    check_unchanged(path, version)
    return digest


def sha256_of(text: str) -> str:
    """Of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=4096)
def _sha256(path: Path, version: FileVersion) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, content: bytes) -> Path:
    """Whole or not at all; an existing file is replaced. Raises GamMergeError."""
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
