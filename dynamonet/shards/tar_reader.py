"""Bytes out of tars: local ones by offset, remote ones by range or through a bounded local cache.

A cached tar is fetched whole, in one sequential read, by whichever process needs it first; the
least recently used ones make room. Nothing is seen under a tar's name until it is complete.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dynamonet.errors import UserError
from dynamonet.storage import Folder

OPEN_TARS = 32  # file handles that a process keeps
_BLOCK = 1 << 20


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
        with _locked(path.with_name(f".{name}.lock")):
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
                    growing.replace(path)
                finally:
                    growing.unlink(missing_ok=True)
            os.utime(path)  # used now
        return path

    def _reserve(self, growing: Path, size: int) -> None:
        """Makes room for a file and takes it at once, so that others count it while it grows."""
        with _locked(self.home / ".lock"):
            files = [(f.stat(), f) for f in self.home.glob("*/*.tar")]
            files.sort(key=lambda item: item[0].st_mtime)
            reserved = sum(f.stat().st_size for f in self.home.glob("*/.*.incomplete"))
            held = reserved + sum(stat.st_size for stat, _ in files)
            for stat, file in files:
                if held + size <= self.limit_bytes:
                    break
                file.unlink(missing_ok=True)  # who has it open reads on
                held -= stat.st_size
            with growing.open("wb") as out:
                out.truncate(size)


class _OpenTar(NamedTuple):
    read: Callable[[int, int], bytes]  # (offset, size)
    close: Callable[[], None]


@dataclass
class TarReader:
    """The tars of a shard set as one process reads them; picklable, opens its files where it is."""

    folder_path: str
    place: str  # name of the set in the cache: its digest
    sizes: dict[str, int]  # bytes of each tar
    cache: TarCache | None = None  # None: read ranges
    _open: OrderedDict[str, _OpenTar] = field(default_factory=OrderedDict)
    _folder: Folder | None = None
    _fetcher: ThreadPoolExecutor | None = None
    _asked: set[str] = field(default_factory=set)

    def __getstate__(self) -> dict[str, object]:
        plain = ("folder_path", "place", "sizes", "cache")
        return {name: getattr(self, name) for name in plain}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def folder(self) -> Folder:
        if self._folder is None:
            self._folder = Folder.at(self.folder_path)
        return self._folder

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Returns bytes of a tar; fewer where it ends before.

        Raises:
            OSError: it cannot be read.
        """
        if name not in self._open:
            self._open[name] = self._opened(name)
            if len(self._open) > OPEN_TARS:
                _, oldest = self._open.popitem(last=False)
                oldest.close()
        self._open.move_to_end(name)
        return self._open[name].read(offset, size)

    def prefetch(self, names: Sequence[str]) -> None:
        """Begins to fetch tars that will be wanted soon, in the background."""
        if self.cache is None:
            return
        if self._fetcher is None:
            self._fetcher = ThreadPoolExecutor(1, "tar-prefetch")
        for name in names:
            if name not in self._asked and name not in self._open:
                self._asked.add(name)
                self._fetcher.submit(self._fetch_ahead, name)

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

    def _opened(self, name: str) -> _OpenTar:
        if self.folder.is_local or self.cache is not None:
            path = self.folder.below(name) if self.cache is None else self._fetched(name)
            handle = os.open(path, os.O_RDONLY)
            # no read-ahead beyond a sample: at 100 GB it would only push other pages out
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)
            return _OpenTar(
                lambda offset, size: os.pread(handle, size, offset), lambda: os.close(handle)
            )
        file = self.folder.fs.open_input_file(self.folder.below(name))
        return _OpenTar(lambda offset, size: file.read_at(size, offset), file.close)


def choose_cache(
    folder: Folder, total_bytes: int, window_bytes: int | None, limit_gb: float
) -> TarCache | None:
    """Returns the cache through which a set is read, or None to read it where it lies.

    Remote tars are cached when they are read window by window, or when all of them fit.

    Args:
        window_bytes: Bytes of the largest window of tars; None = samples in any order.

    Raises:
        UserError: two windows, the present and the next, do not fit.
    """
    limit = int(limit_gb * 1e9)
    if folder.is_local or limit == 0 or (window_bytes is None and total_bytes > limit):
        return None
    if window_bytes is not None and limit < min(2 * window_bytes, total_bytes):
        raise UserError(
            f"loader.cache_gb = {limit_gb:g} cannot hold two windows of tars, "
            f"{2 * window_bytes / 1e9:g} GB; raise it, or lower loader.window_shards"
        )
    root = os.environ.get("DYNAMONET_CACHE") or Path.home() / ".cache" / "dynamonet"
    return TarCache(Path(root) / "tars", limit)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
