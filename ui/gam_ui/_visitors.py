"""A temporary folder per visitor, which is removed when they have left."""

import os
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

import gam_merge as gm
from gam_ui._limits import Limits

DOWNLOAD = "merged.zip"


@dataclass
class Visitor:
    """One open page.

    Attributes:
        folder: holds all that is theirs.
        key: the secret of their download link.
        limits: what they may take up.
        deadline: when the folder is removed, by the monotonic clock.
        adapters: what they have added, by name.
        busy: held while one of their actions runs.
    """

    folder: Path
    key: str
    limits: Limits
    deadline: float = 0.0
    adapters: dict[str, gm.Adapter] = field(default_factory=dict[str, gm.Adapter])
    busy: threading.Lock = field(default_factory=threading.Lock)

    @property
    def merged(self) -> Path:
        """Where their merge is written."""
        return self.folder / "merged"

    @property
    def download(self) -> Path:
        """The archive of their merge."""
        return self.folder / DOWNLOAD

    def receive(self, files: Sequence[Path]) -> list[tuple[str, Path]]:
        """Take uploaded files into the folder; return the sources that they are, with names.

        With a ``.json`` among them they are one adapter and its config, else each is an adapter.
        Raises GamMergeError.
        """
        self._check_size(files)
        if any(file.suffix == ".json" for file in files):
            folder = self._new_folder("adapter-1")
            _take(files, folder)
            return [(folder.name, folder)]
        sources: list[tuple[str, Path]] = []
        for file in files:
            folder = self._new_folder(file.stem)
            _take([file], folder)
            sources.append((folder.name, folder / file.name))
        return sources

    def _check_size(self, files: Sequence[Path]) -> None:
        size = size_of(self.folder) + sum(file.stat().st_size for file in files)
        if size > self.limits.visitor:
            most = self.limits.visitor // 1_000_000
            raise gm.GamMergeError(
                f"the files of one visitor must not exceed {most} MB, got {size // 1_000_000} MB"
            )

    def _new_folder(self, name: str) -> Path:
        """Make a folder for an adapter; its name is not one that was there."""
        stem, number = name, 1
        while True:
            folder = self.folder / "adapters" / name
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                number += 1
                name = f"{stem.removesuffix('-1')}-{number}"
            else:
                return folder

    def forget(self) -> None:
        """Remove everything of theirs."""
        self.adapters.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def without_paths(self, text: str) -> str:
        """Return a text in which files are named as seen from the folder."""
        for part in (self.folder / "adapters", self.folder):
            text = text.replace(f"{part}/", "").replace(str(part), "")
        return text


class Visitors:
    """The visitors of a server, by the session of their page."""

    def __init__(self, root: Path, limits: Limits) -> None:
        self.root = root
        self.uploads = root / "uploads"  # where the web server puts them first
        self.downloads = root / "hub"  # the cache of huggingface_hub
        self.limits = limits
        self._visitors: dict[str, Visitor] = {}
        self._lock = threading.Lock()

    def meet(self, session: str) -> Visitor:
        """Return the visitor of a session, who is new if the session is."""
        with self._lock:
            visitor = self._visitors.get(session)
            if visitor is None:
                key = secrets.token_urlsafe(24)
                visitor = Visitor(self.root / f"v{key}", key, self.limits)
                self._visitors[session] = visitor
            visitor.folder.mkdir(parents=True, exist_ok=True)
            visitor.deadline = time.monotonic() + self.limits.idle
            return visitor

    def leave(self, session: str) -> None:
        """Note that a page was closed."""
        with self._lock:
            visitor = self._visitors.get(session)
            if visitor is not None:
                visitor.deadline = time.monotonic() + self.limits.grace

    def download_of(self, key: str) -> Path | None:
        """Return the archive behind a link."""
        with self._lock:
            for visitor in self._visitors.values():
                if secrets.compare_digest(visitor.key.encode(), key.encode()):
                    return visitor.download
        return None

    def sweep(self) -> None:
        """Remove what nobody needs any more: see ``Limits``."""
        now = time.monotonic()
        with self._lock:
            for session, visitor in list(self._visitors.items()):
                if visitor.deadline < now and not visitor.busy.locked():
                    visitor.forget()
                    del self._visitors[session]
            if not self._visitors:
                shutil.rmtree(self.downloads, ignore_errors=True)
        _remove_older(self.uploads, self.limits.idle)


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder, those that are just being removed left out."""
    total = 0
    for parent, _, names in os.walk(folder):  # leaves out folders that are gone, unlike rglob
        for name in names:
            try:
                file = os.lstat(os.path.join(parent, name))
            except FileNotFoundError:
                continue
            if S_ISREG(file.st_mode):
                total += file.st_size
    return total


def _take(files: Sequence[Path], folder: Path) -> None:
    """Copy files into a folder: equal uploads of two visitors are one file of the web server's.

    Raises GamMergeError if two have one name.
    """
    for file in files:
        place = folder / file.name
        if place.exists():
            raise gm.GamMergeError(
                f"one adapter at a time: the upload holds {file.name} more than once"
            )
        shutil.copyfile(file, place)


def _remove_older(folder: Path, seconds: float) -> None:
    """Remove the files in a folder that were written so long ago."""
    oldest = time.time() - seconds
    for file in folder.rglob("*"):
        try:
            if file.is_file() and file.stat().st_mtime < oldest:
                file.unlink()
        except FileNotFoundError:
            continue
