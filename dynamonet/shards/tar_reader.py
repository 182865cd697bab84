"""Bytes out of tars: local ones by offset, remote ones by range or through a bounded local cache.

A cached tar is fetched whole, in one sequential read, by whichever process needs it first; the
least recently used ones make room. Nothing is seen under a tar's name until it is complete.
"""

from __future__ import annotations

import os
import resource
import shutil
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from dynamonet.errors import UserError
from dynamonet.shards.cache import cache_folder, is_locked, locked
from dynamonet.storage import RETRY_SECONDS, Folder

MOST_FILES = 1 << 16  # that a process asks the system for
READS_AT_ONCE = 16  # of a remote store
_BLOCK = 1 << 20
_WAIT_SECONDS = 0.05


@dataclass(frozen=True)
class TarCache:
    """A local folder of whole tars, shared by the processes of a machine, never above its limit."""

    home: Path
    limit_bytes: int

    def fetch(self, folder: Folder, place: str, name: str, size: int) -> Path:
        """Returns the local copy of a tar, fetched if it is not there.

        Args:
            place: Subfolder of the set that the tar belongs to.

        Raises:
            OSError: it cannot be read, or came with another size.
        """
        path = self.home / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{name}.lock")):
            if not path.exists() or path.stat().st_size != size:
                growing = path.with_name(f".{name}.incomplete")  # one writer: the lock
                self._reserve(growing, size)
                try:
                    source = folder.fs.open_input_stream(folder.below(name))
                    with source, growing.open("r+b") as out:
                        shutil.copyfileobj(source, out, _BLOCK)
                        received = out.tell()
                    if received != size:
                        raise OSError(f"{name}: {received:,} bytes received instead of {size:,}")
                    with self._counting():
                        growing.replace(path)
                finally:
                    with self._counting():
                        growing.unlink(missing_ok=True)
            os.utime(path)  # used now
        return path

    def _counting(self) -> AbstractContextManager[None]:
        """Keeps others from counting files while their names change, and the other way round."""
        return locked(self.home / ".lock")

    def _reserve(self, growing: Path, size: int) -> None:
        """Makes room for a file and takes it at once, so that others count it while it grows.

        Waits where the files that others fetch at this moment leave no room.
        """
        while not self._room_was_taken(growing, size):
            time.sleep(_WAIT_SECONDS)

    def _room_was_taken(self, growing: Path, size: int) -> bool:
        with self._counting():
            growing.unlink(missing_ok=True)  # left by a killed process
            files = [(f.stat(), f) for f in self.home.glob("*/*.tar")]
            files.sort(key=lambda item: item[0].st_mtime)
            reserved = sum(self._reserved(f) for f in self.home.glob("*/.*.incomplete"))
            held = reserved + sum(stat.st_size for stat, _ in files)
            for stat, file in files:
                if held + size <= self.limit_bytes:
                    break
                file.unlink(missing_ok=True)  # who has it open reads on
                held -= stat.st_size
            if reserved and held + size > self.limit_bytes:
                return False
            with growing.open("wb") as out:
                out.truncate(size)
            return True

    def _reserved(self, incomplete: Path) -> int:
        """Returns the bytes that a growing file will take; removes it where nobody fetches it."""
        if is_locked(incomplete.with_suffix(".lock")):
            return incomplete.stat().st_size
        incomplete.unlink()
        return 0


class _LocalTar:
    """An open tar on disk, closed when nothing holds it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        # no read-ahead beyond a sample: at 100 GB it would only push other pages out
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def read_at(self, size: int, offset: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)


class TarReader:
    """The tars of a shard set as one process reads them; picklable, opens its files where it is."""

    def __init__(
        self,
        folder_path: str,
        place: str,
        tars: pa.Table,
        cache: TarCache | None = None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """Args:
        place: Name of the set in the cache: its digest.
        tars: SHARDS_SCHEMA.
        cache: None = local tars where they lie, remote ones by ranges.
        retry_seconds: For so long a remote read that fails is tried again.
        """
        self._given = folder_path, place, tars, cache, retry_seconds
        self.folder_path, self.place, self.cache = folder_path, place, cache
        self.table, self.retry_seconds = tars, retry_seconds
        self._open: OrderedDict[str, _LocalTar | pa.NativeFile] = OrderedDict()
        self._begun: dict[tuple[str, int], Future[bytes]] = {}
        self._asked: set[str] = set()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return TarReader, self._given

    @cached_property
    def folder(self) -> Folder:
        return Folder.at(self.folder_path)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each tar."""
        columns = (self.table[name].to_pylist() for name in ("shard", "bytes"))
        return dict(zip(*columns, strict=True))

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(READS_AT_ONCE, "tar")

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Returns bytes of a tar; fewer where it ends before.

        Raises:
            OSError: of a local tar; of a remote one that is not there or may not be read.
            StoreError: the store does not answer.
        """
        begun = self._begun.pop((name, offset), None)
        return begun.result() if begun else self._read(name, offset, size)

    def begin(self, name: str, offset: int, size: int) -> None:
        """Begins to read bytes that `read` will be asked for, where a store is slow to answer."""
        if self.cache is None and not self.folder.is_local:
            self._begun[name, offset] = self._threads.submit(self._read, name, offset, size)

    def prefetch(self, name: str) -> None:
        """Begins to fetch a tar that will be wanted soon, in the background."""
        if self.cache is not None and name not in self._asked and name not in self._open:
            self._asked.add(name)
            self._threads.submit(self._fetch_ahead, name)

    def _fetch_ahead(self, name: str) -> None:
        try:
            self._fetched(name)
        except OSError:
            return  # whoever reads it will meet the error and name it
        finally:
            self._asked.discard(name)

    def _fetched(self, name: str) -> Path:
        assert self.cache is not None
        return self.cache.fetch(self.folder, self.place, name, self.sizes[name])

    def _read(self, name: str, offset: int, size: int) -> bytes:
        def read() -> bytes:
            try:
                return self._opened(name).read_at(size, offset)
            except OSError:
                self._open.pop(name, None)  # a broken connection stays broken
                raise

        return self.folder.patiently(read, name, self.retry_seconds)

    def _opened(self, name: str) -> _LocalTar | pa.NativeFile:
        with self._lock:
            if (held := self._open.get(name)) is not None:
                self._open.move_to_end(name)
                return held
        if self.cache is not None:
            opened = _LocalTar(self._fetched(name))
        elif self.folder.is_local:
            opened = _LocalTar(Path(self.folder.below(name)))
        else:
            opened = self.folder.fs.open_input_file(self.folder.below(name))
        with self._lock:
            self._open[name] = opened
            while len(self._open) > most_open():
                self._open.popitem(last=False)
        return opened


@cache
def most_open() -> int:
    """Returns how many tars this process may hold open: half of what the system lets it raise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most // 2


def choose_cache(total_bytes: int, window_bytes: int | None, limit_gb: float) -> TarCache | None:
    """Returns the cache through which remote sets are read, or None to read them where they lie.

    Tars are cached when they are read window by window, or when all of them fit.

    Args:
        total_bytes: Of all remote sets.
        window_bytes: Bytes of their largest windows of tars; None = samples in any order.

    Raises:
        UserError: two windows, the present and the next, do not fit.
    """
    limit = int(limit_gb * 1e9)
    if limit == 0 or (window_bytes is None and total_bytes > limit):
        return None
    if window_bytes is not None and limit < min(2 * window_bytes, total_bytes):
        raise UserError(
            f"loader.cache_gb = {limit_gb:g} cannot hold two windows of tars, "
            f"{2 * window_bytes / 1e9:g} GB; raise it, or lower loader.window_shards"
        )
    return TarCache(cache_folder("tars"), limit)
