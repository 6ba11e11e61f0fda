"""A directory that appears whole or not at all, whatever kills the process and however many write at once.

What is to become ``target`` grows in a hidden sibling:

    .target.gam-merge-0123456789abcdef/
        lock    held for as long as the process that writes here lives
        new/    what is to become the target
        old/    what was the target, for the moment between two renames

``new`` and an existing target change places in one step where the system can do that. Elsewhere the target steps aside
to ``old`` first; a process that dies before the second rename leaves no target, and the next one puts ``old`` back.
A sibling whose lock nobody holds belongs to the dead: the next process to write the same target clears it.
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

        Raises OSError if there is a target and it is not to be replaced: this makes one winner of many writers.
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
    """A place to write ``target`` (absolute), after clearing away what dead processes left there.

    Nothing of it stays on leaving, however that happens; a kill leaves a hidden sibling. Raises OSError.
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
    """Make a folder and its parents; if the block fails, take away those that were not there before."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        for folder in (*reversed(made), path):
            folder.mkdir(exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # somebody else uses it by now
            for folder in made:
                folder.rmdir()
        raise


def _make(home: Path) -> int:
    """Make the sibling: the descriptor of its lock. Until that is held another process may take it for dead."""
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
    """Remove a sibling whose lock we hold, the lock last; what it took away from the target goes back."""
    if (home / _OLD).exists() and not os.path.lexists(target):
        os.rename(home / _OLD, target)
    for name in (_NEW, _OLD):
        shutil.rmtree(home / name, ignore_errors=True)
    if not any(
        (home / name).exists() for name in (_NEW, _OLD)
    ):  # else the next to come clears the rest
        with suppress(OSError):
            (home / _LOCK).unlink(missing_ok=True)  # Ctrl-C may come before it
            home.rmdir()


def _prefix(target: Path) -> str:
    return f".{target.name}.gam-merge-"


def _hold(lock: int, *, wait: bool) -> bool:
    """Whether the lock is ours now. Where there are no locks it never is: nobody is taken for dead."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _exchange(x: Path, y: Path) -> bool:
    """Let two directories change places in one step. False where system or file system cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    result: int = rename(_AT_FDCWD, os.fsencode(x), _AT_FDCWD, os.fsencode(y), _RENAME_EXCHANGE)
    return result == 0


def _sync(path: Path) -> None:
    if sys.platform == "win32":
        return  # it cannot sync what is open for reading, nor a directory
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
