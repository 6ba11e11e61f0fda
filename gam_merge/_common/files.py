"""Single files: read as text or JSON, identified by their SHA-256, written whole or not at all."""

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
from gam_merge._common.signature import mistaken

_MAX_BYTES = 1 << 25  # of a text; the indices of the largest models take half of it
# JSON becomes Python dicts and strings, up to 130 bytes per mark: below 1 GB with this limit.
MAX_MARKS = 5_000_000


def read_text(path: Path, *, piped: bool = False) -> str:
    """Read a UTF-8 text. ``piped``: the user named the file, so it may be a pipe.

    Raises GamMergeError.
    """
    try:
        return _read(path, piped=piped).decode()
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise GamMergeError(f"{path}: is not UTF-8 text") from error


def _read(path: Path, *, piped: bool = False) -> bytes:
    """Read all of a file that is not too long."""
    check_path(path)
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


def check_path(path: Path, action: str = "read", *, hint: str = "") -> None:
    """Raise GamMergeError, with the hint, for a path that no file can have."""
    try:
        problem = "contains a NUL byte" if b"\0" in os.fsencode(path) else None
    except UnicodeEncodeError:
        problem = "is not valid Unicode"
    if problem is not None:
        raise GamMergeError(f"{path}: cannot be {action}: the path {problem}{hint}")


def check_ends(path: Path) -> None:
    """Raise GamMergeError for a pipe or a device, which never ends.

    A file from a stranger may be one, or link to one.
    """
    mode = path.stat().st_mode
    if not (S_ISREG(mode) or S_ISDIR(mode)):
        raise GamMergeError(f"{path}: is not a regular file")


def read_json(path: Path, *, hint: str = "") -> dict[str, Any]:
    """Read the object that a JSON file holds.

    Raises GamMergeError, with the hint if there is no file to read.
    """
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
        reason = mistaken(path) or f"is not JSON: {error}"
        raise GamMergeError(f"{path}: {reason}") from error
    if not isinstance(content, dict):
        raise GamMergeError(f"{path}: is not a JSON object")
    return content


def marks(raw: bytes) -> int:
    """Count braces, brackets, commas and colons of a JSON text: at least one per value and name."""
    return sum(map(raw.count, b"{[,:"))


def is_there(path: Path) -> bool:
    """Return whether anything exists at a path.

    Raises GamMergeError for a path that cannot be examined: too long, in a folder without
    permission, or in a loop of links.
    """
    check_path(path)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error
    return True


@dataclass(frozen=True)
class FileVersion:
    """Distinguishes a file from earlier and later ones at the same path."""

    inode: int
    nbytes: int
    modified: int  # ns
    changed: int  # ns; unlike the other time nobody can put it back

    @classmethod
    def of(cls, path: Path, *, hint: str = "") -> "FileVersion":
        """Return the version that is there now.

        Raises GamMergeError, with the hint, if there is no such file.
        """
        try:
            stat = path.stat()
        except OSError as error:
            raise GamMergeError(f"{path}: cannot be read: {error.strerror}{hint}") from error
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def check_unchanged(path: Path, version: FileVersion) -> None:
    """Raise GamMergeError if the file is not in this version any more."""
    if FileVersion.of(path) != version:
        raise GamMergeError(
            f"{path}: changed since it was opened; run again when nothing writes to it"
        )


def sha256(path: Path, version: FileVersion | None = None) -> str:
    """Return the SHA-256 of a file in hexadecimal, computed once per version of the file.

    Raises GamMergeError, also if the file is not in the given version.
    """
    version = version or FileVersion.of(path)
    check_unchanged(path, version)
    try:
        digest = _sha256(path, version)
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error
    check_unchanged(path, version)
    return digest


def sha256_of(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=4096)
def _sha256(path: Path, version: FileVersion) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, content: bytes) -> Path:
    """Write a file, whole or not at all. Raises GamMergeError.

    An existing file is replaced, but nothing else: neither a link nor a device.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        if os.path.lexists(path) and not S_ISREG(path.lstat().st_mode):
            raise GamMergeError(f"{path}: is not a regular file; choose another output")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be written: {error.strerror}") from error
    return path
