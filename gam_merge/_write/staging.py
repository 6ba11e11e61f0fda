"""A directory or a file that appears complete or not at all, despite kills and other writers.

The future ``target`` grows in a hidden sibling:

    .target.gam-merge-0123456789abcdef/
        lock    held as long as the writing process lives
        new/    the future target, if that is a directory
        old/    the previous target, for the moment between two renames
        pair/   the future target, if that is a file, and the directory that belongs to it
        link    a second link of that file, to take the name of a file that is replaced
        replaced/   the directory that belonged to a file that is replaced

``new`` and an existing target change places in one step where the system can do that. Elsewhere the
target moves to ``old`` first; a process that dies before the second rename leaves no target, and
the next one puts ``old`` back. A sibling whose lock nobody holds belongs to a dead process: the
next process to write the same target clears it.

A file of ``pair`` gets its name as a second link. A process that dies before the directory that
belongs to the file has its name, too, leaves both links, and the next process finishes its work.
"""

import ctypes
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_LOCK, _NEW, _OLD = "lock", "new", "old"
_PAIR, _LINK, _REPLACED = "pair", "link", "replaced"
_RANDOM = re.compile(r"[0-9a-f]{16}")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


class Staging:
    """A directory on its way to ``target``: fill ``new``, then ``commit``."""

    def __init__(self, home: Path, target: Path) -> None:
        self._home, self._target = home, target
        self.new = home / _NEW
        self.new.mkdir()

    def commit(self, *, replace: bool) -> None:
        """Sync ``new`` to the disk and give it its name.

        Raises OSError if a target exists and is not to be replaced: of many writers one wins.
        """
        for path in (*self.new.iterdir(), self.new):
            sync(path)
        if not (replace and os.path.lexists(self._target)):
            os.rename(self.new, self._target)
        elif not _exchange(self.new, self._target):
            os.rename(self._target, self._home / _OLD)
            os.rename(self.new, self._target)
        sync(self._target.parent)


class PairStaging:
    """A file on its way to ``target``, with a directory: fill ``pair``, then ``commit``.

    ``pair`` holds a file of the target's name, and the directory under the name that it gets next
    to the target.
    """

    def __init__(self, home: Path, target: Path) -> None:
        self._home, self._target = home, target
        self.pair = home / _PAIR
        self.pair.mkdir()

    def commit(self, *, replace: bool) -> None:
        """Sync both to the disk and give the file its name, then the directory.

        Raises OSError as above.
        """
        for path in (*self.pair.rglob("*"), self.pair):
            sync(path)
        file = self.pair / self._target.name
        if not replace:
            _link(file, self._target)
        else:
            _link(file, self._home / _LINK)
            os.replace(self._home / _LINK, self._target)
        _place_companions(self._home, self._target)
        sync(self._target.parent)


def _link(file: Path, name: Path) -> None:
    """Give a file a second name; move it where the system has no links. Raises OSError."""
    try:
        os.link(file, name)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(name):
            raise
        os.rename(file, name)


def _place_companions(home: Path, target: Path) -> None:
    """Give the directories of a pair their names next to the target, whose file has its own.

    Done again after a kill at any step, it does what is left.
    """
    for companions in list((home / _PAIR).iterdir()):
        if companions.is_dir():
            place = target.with_name(companions.name)
            if os.path.lexists(place):
                shutil.rmtree(home / _REPLACED, ignore_errors=True)
                os.rename(place, home / _REPLACED)
            os.rename(companions, place)


@contextmanager
def staged(target: Path) -> Iterator[Staging]:
    """Provide a place to write the directory ``target`` (absolute), as ``staging_home`` does."""
    with staging_home(target) as home:
        yield Staging(home, target)


@contextmanager
def staged_pair(target: Path) -> Iterator[PairStaging]:
    """Provide a place to write the file ``target`` (absolute), as ``staging_home`` does."""
    with staging_home(target) as home:
        yield PairStaging(home, target)


@contextmanager
def staging_home(target: Path) -> Iterator[Path]:
    """Provide a hidden sibling of ``target``, after clearing what dead processes left.

    It is removed at the end of the block in any case; a kill leaves a hidden sibling. Raises
    OSError.
    """
    with _folder(target.parent):
        clear_dead(target)
        home, lock = target.parent / (_prefix(target) + secrets.token_hex(8)), None
        try:
            lock = _make(home)
            yield home
        finally:
            _clear(home, target)
            if lock is not None:
                os.close(lock)


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder and its parents; if the block fails, remove those that are new."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        for folder in (*reversed(missing), path):
            folder.mkdir(exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # another process uses it by now
            for folder in missing:
                folder.rmdir()
        raise


def _make(home: Path) -> int:
    """Make the sibling and return the descriptor of its lock.

    Until the lock is held, another process may take the sibling for dead and clear it.
    """
    while True:
        home.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            lock = os.open(home / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            _hold(lock, wait=True)
            if os.fstat(lock).st_nlink:
                return lock
            os.close(lock)


def clear_dead(target: Path) -> None:
    """Clear the siblings of dead processes, and complete what they began to put in place."""
    prefix = _prefix(target)
    for entry in list(os.scandir(target.parent)):
        if entry.name.startswith(prefix) and _RANDOM.fullmatch(entry.name.removeprefix(prefix)):
            _clear_if_dead(Path(entry.path), target)


def _clear_if_dead(home: Path, target: Path) -> None:
    """Clear a sibling unless a living process holds its lock."""
    try:
        lock = os.open(home / _LOCK, os.O_RDWR)
    except OSError:
        with suppress(OSError):
            home.rmdir()  # empty, if its process died before it had a lock
        return
    try:
        if _hold(lock, wait=False):
            _clear(home, target)
    finally:
        os.close(lock)


def _clear(home: Path, target: Path) -> None:
    """Remove a sibling whose lock this process holds, the lock last.

    An old target is put back; a file that has its name gets the directory that belongs to it.
    """
    if _is_placed(home / _PAIR / target.name, target):
        _place_companions(home, target)
    if (home / _OLD).exists() and not os.path.lexists(target):
        os.rename(home / _OLD, target)
    folders = [home / name for name in (_NEW, _OLD, _PAIR, _REPLACED)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    if any(folder.exists() for folder in folders):
        return  # the next process clears the rest
    with suppress(OSError):
        (home / _LINK).unlink(missing_ok=True)
        (home / _LOCK).unlink(missing_ok=True)  # Ctrl-C may come before it
        home.rmdir()


def _is_placed(file: Path, target: Path) -> bool:
    """Tell whether a file of a pair has its name already."""
    return file.exists() and target.exists() and file.samefile(target)


def _prefix(target: Path) -> str:
    return f".{target.name}.gam-merge-"


def _hold(lock: int, *, wait: bool) -> bool:
    """Take a lock; return whether this process holds it now.

    Without locks the answer is no, so that no process is taken for dead.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _exchange(x: Path, y: Path) -> bool:
    """Let two directories change places in one step; return whether the system did so."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    result: int = rename(_AT_FDCWD, os.fsencode(x), _AT_FDCWD, os.fsencode(y), _RENAME_EXCHANGE)
    return result == 0


def sync(path: Path) -> None:
    """Wait until a file or a directory is on the disk. Raises OSError."""
    if sys.platform == "win32":
        return  # Windows syncs neither directories nor files that are open for reading
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
