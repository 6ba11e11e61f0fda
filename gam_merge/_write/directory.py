"""A directory of our making: safetensors files and what lies beside them, whole or not there at all."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import sha256
from gam_merge._common.version import VERSION
from gam_merge._read.safetensors import SafetensorsWriter, TensorSpec, read_header
from gam_merge._write.staging import staged

# What every safetensors file of ours says in its metadata. By it --force knows what it may replace.
_STAMP, _COMPANIONS = "gam_merge.version", "gam_merge.companions"


class DirectoryWriter:
    """A directory while it is being written. A context: left by an error, nothing stays.

    with DirectoryWriter(out, companions=["config.json"], force=False) as directory:
        with directory.safetensors("model.safetensors", specs, metadata) as file:
            file.write(key, tensor)  # every announced tensor, in any order
        directory.commit({"config.json": text})

    companions: the names of all its files that are not safetensors. All of it raises GamMergeError: for an output that
    exists, a disk that takes no more.
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
        """A file of tensors, whole when its block is left."""
        ours = {"format": "pt", _STAMP: VERSION, _COMPANIONS: "/".join(self._companions)}
        with _naming(self._out):
            writer = SafetensorsWriter(self._staging.new / name, specs, {**metadata, **ours})
            with closing(writer):
                yield writer
                writer.finish()

    def sha256(self, name: str) -> str:
        """Of a file that has been written."""
        return sha256(self._staging.new / name)

    def copy(self, file: Path) -> None:
        """A companion, as it is."""
        with _naming(self._out):
            shutil.copyfile(file, self._staging.new / file.name)

    def commit(self, texts: Mapping[str, str]) -> None:
        """Write the companions that are texts, in their order. From here on the directory is there."""
        with _naming(self._out):
            for name, text in texts.items():
                (self._staging.new / name).write_text(text, encoding="utf-8")
            check_output(self._out, force=self._force)  # it may have changed while we were at work
            try:
                self._staging.commit(replace=self._force)
            except OSError:
                check_output(
                    self._out, force=self._force
                )  # another merge may have been there first
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
    """Raises GamMergeError if ``out`` may not be written, or replaced, or if it is or holds one of the sources."""
    with _naming(out):
        if not _is_there(out):
            return
        places = [Path(os.path.realpath(source)) for source in sources]
        if any(Path(os.path.realpath(out)) in (place, *place.parents) for place in places):
            raise GamMergeError(f"{out}: is a source, or holds one; choose another output")
        if not force:
            raise GamMergeError(
                f"{out}: exists already; choose another output or pass --force (force=True in Python)"
            )
        if out.is_symlink() or not out.is_dir() or not _is_ours(out):
            raise GamMergeError(
                f"{out}: is not an empty directory or one that we wrote; --force does not replace it"
            )


def _is_there(out: Path) -> bool:
    """Raises OSError for a path at which nothing can be, GamMergeError for what is no path."""
    try:
        os.lstat(out)
    except FileNotFoundError:
        steps = [i for i, part in enumerate(out.parts) if part == ".."]
        if steps:
            os.stat(
                Path(*out.parts[: steps[-1] + 1])
            )  # no step leads back from a folder that is not there
        return False
    except ValueError as error:
        reason = "its name holds what no path may"
        raise GamMergeError(f"{out}: cannot be written: {reason}; choose another output") from error
    return True


def _is_ours(directory: Path) -> bool:
    """Whether it holds nothing, or nothing but safetensors files of ours and their companions."""
    paths = list(directory.iterdir())
    known: set[str] = set()
    for path in paths:
        if path.suffix == ".safetensors" and path.is_file() and (metadata := stamped(path)):
            known |= {path.name, *metadata.get(_COMPANIONS, "").split("/")}
    return all(path.name in known and path.is_file() for path in paths)


def stamped(file: Path) -> Mapping[str, str] | None:
    """The metadata of a safetensors file of ours, or None if it is none."""
    try:
        _, metadata = read_header(file, any_dtype=True)
    except GamMergeError:
        return None
    return metadata if _STAMP in metadata else None


@contextmanager
def _naming(out: Path) -> Iterator[None]:
    """Errors of the file system as errors of this output."""
    try:
        yield
    except OSError as error:
        raise GamMergeError(
            f"{out}: cannot be written: {error.strerror}; choose another output"
        ) from error
