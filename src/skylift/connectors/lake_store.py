"""The files of a lake in a folder of this machine. Paths are relative to its root, with `/`. connectors/lake_s3.py is the same on S3.

Durable means: a file is on disk before the log names it (fsync), and so is the log's entry before a transaction has happened.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import pyarrow as pa

from skylift.errors import CopyError, SetupError, SkyliftError, TargetFailed, Transient

OWN = "_skylift"                  # the folder of what no reader looks at
STAGING = f"{OWN}/staging"        # data files that are not, or not yet, in their table's folder
_LOCK = f"{OWN}/lock"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2      # linux/fcntl.h, linux/fs.h
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EXDEV, errno.EMLINK}     # link, or change places


class Folder:
    """One folder and everything in it; one process at a time."""

    pre_buffer = False                # a local read needs no coalescing
    storage_options: None = None      # for `deltalake`
    orphan_age_s = 0.0                # the lock keeps others out, so what no table owns is nobody's

    def __init__(self, root: Path) -> None:
        self.root = root
        self.where = f"folder {root}"
        try:
            (root / STAGING).mkdir(parents=True, exist_ok=True)
            self._lock: IO[Any] = (root / _LOCK).open("w")
        except OSError as error:
            raise SetupError(f"folder {root} cannot be written: {error.strerror}", hint="check the path and its permissions") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise Transient(f"folder {root} is in use by another program", hint="close it; a lake has one writer at a time") from None

    def close(self) -> None:
        self._lock.close()

    def uri(self, folder: str) -> str:
        """For `deltalake`."""
        return str(self.root / folder)

    # -------------------------------------------------------------- small files

    def get(self, path: str) -> bytes:
        with self.told():
            return (self.root / path).read_bytes()

    def create(self, path: str, data: bytes) -> bool:
        """Make a small file, durably and all at once; False if it exists."""
        target = self.root / path
        with self.told():
            if target.exists():
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f".{uuid4().hex}")
            try:
                draft.write_bytes(data)
                _sync(draft)
                draft.rename(target)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
            _sync(target.parent)
        return True

    def settle(self) -> None:
        """Everything shown so far is durable."""
        os.sync()

    # -------------------------------------------------------------- data files

    @contextmanager
    def writer(self, path: str) -> Iterator[Any]:
        """A new file, as what pyarrow writes to."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(self.root / path), "wb") as sink:
            yield sink

    def reader(self, path: str, size_bytes: int) -> Any:
        return str(self.root / path)

    def sync(self, paths: Iterable[str]) -> None:
        """Make written files durable."""
        targets = [self.root / path for path in paths]
        targets += {target.parent for target in targets}
        with self.told():
            if len(targets) <= 4:
                for target in targets:
                    _sync(target)
            else:                                  # at once: the file system writes its journal for many together
                with ThreadPoolExecutor(8) as pool:
                    list(pool.map(_sync, targets))

    def files(self, prefix: str) -> dict[str, float]:
        """Paths of all files below, with the time of their last change."""
        found = {}
        with self.told():
            for folder, _, names in os.walk(self.root / prefix):
                for name in names:
                    full = os.path.join(folder, name)
                    with suppress(FileNotFoundError):
                        found[os.path.relpath(full, self.root)] = os.stat(full).st_mtime
        return found

    def delete(self, paths: Iterable[str]) -> None:
        with self.told():
            for path in paths:
                (self.root / path).unlink(missing_ok=True)

    def delete_folder(self, folder: str) -> None:
        with self.told():
            if (self.root / folder).exists():
                shutil.rmtree(self.root / folder)

    def move(self, moves: Mapping[str, str]) -> None:
        """From where files lie to where they belong; what has been moved already is left alone."""
        with self.told():
            for lies, belongs in moves.items():
                (self.root / belongs).parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    (self.root / lies).rename(self.root / belongs)

    def show(self, folder: str, files: Collection[str], ours: Callable[[str], Any]) -> None:
        """Let `folder` hold exactly `files`, at one moment for whoever lists it; what it lacks lies in the staging.

        A folder with the new set is made beside the old one, of hard links, and the two change places. Files that are not
        `ours` (a test on the name) are left alone; where there are any, or the file system has no links, files change one by one.
        """
        place = self.root / folder
        with self.told():
            here = set(os.listdir(place)) if place.exists() else set()
            if here != set(files):
                if all(map(ours, here)):
                    self._exchange(place, here, files)
                else:
                    self._one_by_one(place, here, files, ours)
            self.delete(staged(name) for name in files if name not in here)

    def _exchange(self, place: Path, here: set[str], files: Collection[str]) -> None:
        fresh = self.root / STAGING / uuid4().hex
        fresh.mkdir()
        try:
            for name in files:
                os.link(place / name if name in here else self.root / staged(name), fresh / name)
            if here:
                _change_places(fresh, place)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                fresh.rename(place)                # over an empty folder, or none
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            self._one_by_one(place, here, files, lambda name: True)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _one_by_one(self, place: Path, here: set[str], files: Collection[str], ours: Callable[[str], Any]) -> None:
        place.mkdir(parents=True, exist_ok=True)
        for name in files:
            if name not in here:
                (self.root / staged(name)).rename(place / name)
        for name in here - set(files):
            if ours(name):
                (place / name).unlink()

    def each(self, act: Callable[[Any], None], items: Iterable[Any]) -> None:
        """One after the other: nothing is gained from many at once here."""
        all_of(partial(act, item) for item in items)

    # -------------------------------------------------------------- errors

    @contextmanager
    def told(self) -> Iterator[None]:
        """The operating system's errors as ours; a missing file is told to who asked for it."""
        try:
            yield
        except (SkyliftError, FileNotFoundError):
            raise
        except OSError as error:
            text = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
            raise TargetFailed(f"{self.where}: {text}",
                               hint="free space or restore access, then run again: what has arrived stays") from None


def all_of(calls: Iterable[Callable[[], Any]]) -> None:
    """Make every call; then raise the first CopyError, which kept no other one back."""
    failed = []
    for call in calls:
        try:
            call()
        except CopyError as error:
            failed.append(error)
    if failed:
        raise failed[0]


def staged(name: str) -> str:
    """Where the file that will be `name` in its table's folder lies before."""
    return f"{STAGING}/{name.removesuffix('.parquet')}"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _change_places(one: Path, other: Path) -> None:
    """Two folders change places at one moment (https://man7.org/linux/man-pages/man2/rename.2.html, RENAME_EXCHANGE)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
