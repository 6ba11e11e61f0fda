"""Single files: read as tables, known by their sha256, written whole or not at all."""

import json
import os
import secrets
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path
from typing import Any

from gam_merge._errors import GamMergeError


def read_json(path: Path, *, hint: str = "") -> dict[str, Any]:
    """The table that a JSON file holds. Raises GamMergeError; if there is none to read, with the hint."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}{hint}") from error
    except (ValueError, RecursionError) as error:
        raise GamMergeError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise GamMergeError(f"{path}: is not a table of settings")
    return content


def sha256(path: Path) -> str:
    """Of the content, in hexadecimal; computed once while size and time of the file stay. Raises GamMergeError."""
    try:
        stat = path.stat()
        return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error


@lru_cache(maxsize=4096)
def _sha256(path: Path, *version: int) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


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
