"""A directory that appears complete or not at all, despite kills and concurrent writers.

The future ``target`` grows in a hidden sibling:

    .target.gam-merge-0123456789abcdef/
        lock    held as long as the writing process lives
        new/    the future target
        old/    the previous target, for the moment between two renames

``new`` and an existing target change places in one step where the system can do that. Elsewhere the
target moves to ``old`` first; a process that dies before the second rename leaves no target, and
the next one puts ``old`` back. A sibling whose lock nobody holds belongs to a dead process: the
next process to write the same target clears it.
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
_RANDOM = re.compile(r"[0-9a-f]{16}")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


class Staging:
    """A directory on its way to ``target``: fill ``new``, then ``commit``."""

    def __init__(self, home: Path, target: Path) -> None:
        self._home, self._target = home, target
        self.new = home / _NEW

    def commit(self, *, replace: bool) -> None:
        """Sync ``new`` to the disk and give it its name.

        Raises OSError if a target exists and is not to be replaced: of many writers one wins.
        """
        for path in (*self.new.iterdir(), self.new):
            _sync(path)
        if not (replace and os.path.lexists(self._target)):
            os.rename(self.new, self._target)
        elif not _exchange(self.new, self._target):
            os.rename(self._target, self._home / _OLD)
            os.rename(self.new, self._target)
        _sync(self._target.parent)


@contextmanager
def staged(target: Path) -> Iterator[Staging]:
    """Provide a place to write ``target`` (absolute), after clearing what dead processes left.

    It is removed at the end of the block in any case; a kill leaves a hidden sibling. Raises
    OSError.
    """
    with _folder(target.parent):
        _sweep(target)
        home, lock = target.parent / (_prefix(target) + secrets.token_hex(8)), None
        try:
            lock = _make(home)
            (home / _NEW).mkdir()
            yield Staging(home, target)
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


def _sweep(target: Path) -> None:
    """Clear the siblings of dead processes."""
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
    """Remove a sibling whose lock this process holds, the lock last; put an old target back."""
    if (home / _OLD).exists() and not os.path.lexists(target):
        os.rename(home / _OLD, target)
    for name in (_NEW, _OLD):
        shutil.rmtree(home / name, ignore_errors=True)
    if (home / _NEW).exists() or (home / _OLD).exists():
        return  # the next process clears the rest
    with suppress(OSError):
        (home / _LOCK).unlink(missing_ok=True)  # Ctrl-C may come before it
        home.rmdir()


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


def _sync(path: Path) -> None:
    if sys.platform == "win32":
        return  # Windows syncs neither directories nor files that are open for reading
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
