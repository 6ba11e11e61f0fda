"""A directory that gam-merge writes, complete or not at all: safetensors files and companions."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import check_path, sha256
from gam_merge._common.version import VERSION
from gam_merge._read.safetensors import SafetensorsWriter, TensorSpec, read_header
from gam_merge._write.staging import staged

# In the metadata of every safetensors file that gam-merge writes; --force replaces nothing else.
_STAMP, _COMPANIONS = "gam_merge.version", "gam_merge.companions"
_REMEDY = "; choose another output"


class DirectoryWriter:
    """A directory while it is being written. A context manager; after an error nothing remains.

    with DirectoryWriter(out, companions=["config.json"], force=False) as directory:
        with directory.safetensors("model.safetensors", specs, metadata) as file:
            file.write(key, tensor)  # every announced tensor, in any order
        directory.commit({"config.json": text})

    companions: the names of all its files that are not safetensors. Every method raises
    GamMergeError, for instance if the output exists or the disk is full.
    """

    def __init__(self, out: Path, *, companions: Sequence[str], force: bool = False) -> None:
        self._out, self._companions, self._force = out, sorted(companions), force

    def __enter__(self) -> "DirectoryWriter":
        with _naming(self._out), ExitStack() as stack:
            self._staging = stack.enter_context(staged(Path(os.path.realpath(self._out))))
            check_output(self._out, force=self._force)
            self._stack = stack.pop_all()
        return self

    @contextmanager
    def safetensors(
        self, name: str, specs: Sequence[TensorSpec], metadata: Mapping[str, str]
    ) -> Iterator[SafetensorsWriter]:
        """Open a file of tensors, which is complete at the end of its block."""
        stamp = {"format": "pt", _STAMP: VERSION, _COMPANIONS: "/".join(self._companions)}
        with _naming(self._out):
            writer = SafetensorsWriter(self._staging.new / name, specs, {**metadata, **stamp})
            with closing(writer):
                yield writer
                writer.finish()

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file that has been written."""
        return sha256(self._staging.new / name)

    def copy(self, file: Path) -> None:
        """Copy a companion as it is."""
        with _naming(self._out):
            shutil.copyfile(file, self._staging.new / file.name)

    def commit(self, texts: Mapping[str, str]) -> None:
        """Write the companions that are texts, in order, and give the directory its name."""
        with _naming(self._out):
            for name, text in texts.items():
                (self._staging.new / name).write_text(text, encoding="utf-8")
            check_output(self._out, force=self._force)  # it may have changed in the meantime
            try:
                self._staging.commit(replace=self._force)
            except OSError:
                check_output(self._out, force=self._force)  # another merge may have been faster
                raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with _naming(self._out):
            self._stack.__exit__(kind, error, trace)


def check_output(out: Path, *, force: bool, sources: Sequence[Path] = ()) -> None:
    """Raise GamMergeError if ``out`` may not be written or replaced.

    It must not be one of the sources, nor contain one.
    """
    with _naming(out):
        if not _is_there(out):
            return
        output = Path(os.path.realpath(out))
        for source in sources:
            path = Path(os.path.realpath(source))
            if output in (path, *path.parents):
                raise GamMergeError(f"{out}: is a source, or contains one; choose another output")
        if not force:
            raise GamMergeError(
                f"{out}: already exists; "
                "choose another output or pass --force (force=True in Python)"
            )
        if out.is_symlink() or not out.is_dir() or not _is_replaceable(out):
            raise GamMergeError(
                f"{out}: is neither empty nor a directory that gam-merge wrote; "
                "--force does not replace it"
            )


def _is_there(out: Path) -> bool:
    """Return whether anything exists at a path. Raises OSError if nothing can exist there."""
    check_path(out, "written", hint=_REMEDY)
    try:
        os.lstat(out)
    except FileNotFoundError:
        steps = [i for i, part in enumerate(out.parts) if part == ".."]
        if steps:  # a folder that does not exist has no parent to go back to
            os.stat(Path(*out.parts[: steps[-1] + 1]))
        return False
    return True


def _is_replaceable(directory: Path) -> bool:
    """Return whether all its files, if any, are safetensors of gam-merge and their companions."""
    paths = list(directory.iterdir())
    known: set[str] = set()
    for path in paths:
        metadata = None
        if path.suffix == ".safetensors" and path.is_file():
            metadata = stamped(path)
        if metadata:
            known |= {path.name, *metadata.get(_COMPANIONS, "").split("/")}
    return all(path.name in known and path.is_file() for path in paths)


def stamped(file: Path) -> Mapping[str, str] | None:
    """Return the metadata of a safetensors file if gam-merge wrote it, else None."""
    try:
        _, metadata = read_header(file, any_dtype=True)
    except GamMergeError:
        return None
    return metadata if _STAMP in metadata else None


@contextmanager
def _naming(out: Path) -> Iterator[None]:
    """Turn errors of the file system into a GamMergeError about this output."""
    try:
        yield
    except OSError as error:
        raise GamMergeError(f"{out}: cannot be written: {error.strerror}{_REMEDY}") from error
