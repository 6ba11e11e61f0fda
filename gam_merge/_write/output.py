"""An output of gam-merge, complete or not at all: files of tensors and their companions.

It is a directory that holds all of them, or a file of tensors whose companions are in a directory
next to it.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from stat import S_ISREG
from types import TracebackType

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import check_path, sha256
from gam_merge._common.version import VERSION
from gam_merge._read.container import TensorSpec, TensorWriter
from gam_merge._read.containers import read_metadata
from gam_merge._read.format import OpenWriter
from gam_merge._read.formats import file_suffixes
from gam_merge._read.place import companions_of, is_file_name
from gam_merge._read.safetensors import SafetensorsWriter
from gam_merge._write.staging import clear_dead, staged, staged_pair, sync

# In the metadata of every file of tensors that gam-merge writes; --force replaces nothing else.
_STAMP, _COMPANIONS = "gam_merge.version", "gam_merge.companions"
_REMEDY = "; choose another output"


class OutputWriter:
    """An output while it is being written. A context manager; after an error nothing remains.

    with OutputWriter(out, companions=["config.json"], force=False) as output:
        with output.tensors("model.safetensors", specs, metadata) as file:
            file.write(key, tensor)  # every announced tensor, in any order
        output.commit({"config.json": text})

    companions: the names of all its files that are not tensors. as_file: ``out`` is the file of
    tensors, and its companions go into a directory next to it. Every method raises GamMergeError,
    for instance if the output exists or the disk is full.
    """

    def __init__(
        self, out: Path, *, companions: Sequence[str], force: bool = False, as_file: bool = False
    ) -> None:
        self._out, self._companions, self._force = out, sorted(companions), force
        self._as_file = as_file

    def __enter__(self) -> "OutputWriter":
        target = Path(os.path.realpath(self._out))
        with _naming(self._out), ExitStack() as stack:
            if self._as_file:
                pair = stack.enter_context(staged_pair(target))
                self._place_tensors, self._commit = pair.pair, pair.commit
                self._place_texts = companions_of(pair.pair / target.name)
                self._place_texts.mkdir()
            else:
                staging = stack.enter_context(staged(target))
                self._place_tensors, self._commit = staging.new, staging.commit
                self._place_texts = staging.new
            check_output(self._out, force=self._force)
            self._stack = stack.pop_all()
        return self

    @contextmanager
    def tensors(
        self,
        name: str,
        specs: Sequence[TensorSpec],
        metadata: Mapping[str, str],
        *,
        container: OpenWriter = SafetensorsWriter,
        data_hash_key: str | None = None,
    ) -> Iterator[TensorWriter]:
        """Open a file of tensors, which is complete at the end of its block.

        data_hash_key: the metadata that is to hold the SHA-256 of all tensors.
        """
        stamp = {_STAMP: VERSION, _COMPANIONS: "/".join(self._companions)}
        unknown = {} if data_hash_key is None else {data_hash_key: "0" * 64}
        with _naming(self._out):
            everything = {**metadata, **stamp, **unknown}
            writer = container(self._place_tensors / name, specs, everything)
            with closing(writer):
                yield writer
                if data_hash_key is not None:
                    writer.amend({data_hash_key: writer.data_sha256()})
                writer.finish()

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file of tensors that has been written.

        Meanwhile it goes to the disk, for which ``commit`` would have to wait.
        """
        file = self._place_tensors / name
        with _naming(self._out), ThreadPoolExecutor(1, "gam-merge-sync") as aside:
            synced = aside.submit(sync, file)
            digest = sha256(file)
            synced.result()
        return digest

    def copy(self, file: Path) -> None:
        """Copy a companion as it is."""
        with _naming(self._out):
            shutil.copyfile(file, self._place_texts / file.name)

    def commit(self, texts: Mapping[str, str]) -> None:
        """Write the companions that are texts, in order, and give the output its name."""
        with _naming(self._out):
            for name, text in texts.items():
                (self._place_texts / name).write_text(text, encoding="utf-8")
            check_output(self._out, force=self._force)  # it may have changed in the meantime
            try:
                self._commit(replace=self._force)
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
            _check_companions_free(out)
            return
        if is_file_name(out):
            clear_dead(Path(os.path.realpath(out)))  # a killed process may owe the file its texts
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
        if out.is_symlink() or not _is_ours(out):
            raise GamMergeError(
                f"{out}: is neither empty nor an output that gam-merge wrote; "
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


def _check_companions_free(out: Path) -> None:
    """Raise GamMergeError if the directory for the texts about a file is there without the file."""
    companions = companions_of(out)
    if is_file_name(out) and os.path.lexists(companions):
        raise GamMergeError(
            f"{out}: there is no such file, but there is {companions}; move it away, or choose "
            "another output"
        )


def _is_ours(out: Path) -> bool:
    """Return whether all of an output, if anything, was written by gam-merge."""
    if out.is_dir():
        return _is_replaceable(out, {})
    companions = companions_of(out)
    metadata = stamped(out) if out.is_file() else None
    if metadata is None or companions.is_symlink():
        return False
    return not companions.exists() or _is_replaceable(companions, metadata)


def _is_replaceable(directory: Path, metadata: Mapping[str, str]) -> bool:
    """Return whether all its files, if any, are tensors of gam-merge and their companions.

    metadata: of a file of tensors outside whose companions may be in it.
    """
    paths = list(directory.iterdir())
    known = set(metadata.get(_COMPANIONS, "").split("/"))
    for path in paths:
        own = stamped(path) if _may_hold_tensors(path) else None
        if own:
            known |= {path.name, *own.get(_COMPANIONS, "").split("/")}
    return all(path.name in known and path.is_file() for path in paths)


def written_files(out: Path) -> dict[str, Path]:
    """Return the files of an output that gam-merge wrote, as far as they remain, by name.

    Files of tensors first. Raises GamMergeError for one that is not a regular file any more: a link
    may lead to anything on this machine.
    """
    home, tensors = companions_of(out), [out]
    if out.is_dir():
        home, tensors = out, [path for path in sorted(out.iterdir()) if _may_hold_tensors(path)]
    files: dict[str, Path] = {}
    companions: set[str] = set()
    for path in tensors:
        metadata = stamped(path)
        if metadata is not None:
            files[path.name] = path
            companions |= set(metadata.get(_COMPANIONS, "").split("/"))
    files |= {name: home / name for name in sorted(companions) if _is_name(name)}
    present = {name: file for name, file in files.items() if os.path.lexists(file)}
    for file in present.values():
        if not S_ISREG(file.lstat().st_mode):
            raise GamMergeError(f"{file}: is not a regular file, as gam-merge wrote it")
    return present


def _may_hold_tensors(path: Path) -> bool:
    return path.suffix in file_suffixes() and path.is_file()


def _is_name(name: str) -> bool:
    """Tell whether a companion is a file of its own directory."""
    return name.isprintable() and name not in ("", ".", "..") and name == Path(name).name


def stamped(file: Path) -> Mapping[str, str] | None:
    """Return the metadata of a file of tensors if gam-merge wrote it, else None."""
    try:
        metadata = read_metadata(file)
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
