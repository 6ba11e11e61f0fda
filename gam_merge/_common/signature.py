"""What a file is by its first bytes, where it is not what its name says."""

import zipfile
from pathlib import Path

_LFS, _HTML = b"version https://git-lfs.github.com/spec/", (b"<!doctype html", b"<html")
_ZIP, _GZIP, _PICKLES = b"PK\x03\x04", b"\x1f\x8b", (b"\x80\x02", b"\x80\x03", b"\x80\x04")
_XML, _GGUF = b"<?xml", b"GGUF"


def mistaken(path: Path) -> str | None:
    """Return what lies in place of a file that could not be read, and the remedy, if it is known.

    Errors of downloads, which any file may have.
    """
    start = _start(path)
    if start.startswith(_LFS):
        return (
            "is a Git LFS pointer, a text in place of the file; run 'git lfs pull' in its "
            "repository, or fetch it by its Hub id"
        )
    if start.lstrip().lower().startswith(_HTML):
        return (
            "is an HTML page that was saved under the name of the file; download the file itself "
            "(on the Hub its address has /resolve/ where the page's has /blob/)"
        )
    if start.startswith(_GZIP):
        return "is compressed with gzip; unpack it"
    if start.startswith(_XML):
        return "is an XML text, as servers answer with errors; download the file again"
    return None


def mistaken_weights(path: Path) -> str | None:
    """Return what lies in place of weights that could not be read, and the remedy, if known."""
    reason, start = mistaken(path), _start(path)
    if reason is not None:
        return reason
    if start.lstrip().startswith(b"{"):
        return _json(path)
    if start.startswith(_GGUF):
        return "is a GGUF file by another name; rename it to end in .gguf"
    if start[8:9] == b"{" and path.suffix != ".safetensors":
        return "is a safetensors file by another name; rename it to end in .safetensors"
    if start.startswith(_ZIP) and not zipfile.is_zipfile(path):
        return "is a pickle of torch.save that was cut off; download it again"
    if start.startswith((_ZIP, *_PICKLES)) and path.suffix == ".safetensors":
        return "is a pickle of torch.save by another name; rename it to end in .bin"
    return None


def _start(path: Path) -> bytes:
    """Return the first bytes of a file, none if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(1024)
    except OSError:
        return b""


def _json(path: Path) -> str:
    """Return which JSON file lies in place of weights."""
    if path.name.endswith(".index.json"):
        return (
            "is the index of a model in several files, not an adapter; gam-merge extract makes an "
            "adapter from a fine-tuned model and its base"
        )
    if path.suffix == ".json":
        return "is a config, not weights; name the file of weights, or the directory"
    return "is a JSON text, not weights; download the file of weights again"
