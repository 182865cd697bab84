"""Folders on disk or in an object store, and files that appear only when they are whole.

Local paths and `s3://`, `gs://`, `hdfs://` URIs go through `pyarrow.fs`, the file systems that Ray
Train uses. A name below a folder is written whole or not at all: locally by renaming a finished
temporary file, remotely because an object appears when its upload ends.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pyarrow import fs as pafs

from dynamonet.commands import command
from dynamonet.errors import UserError

INCOMPLETE = ".incomplete"  # where local files grow until they are whole
RETRY_SECONDS = 120.0
_BLOCK = 1 << 20
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between two tries
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

T = TypeVar("T")


class StoreError(UserError):
    """A store did not answer for long. Nothing is known to be damaged: a later start may do."""


def patiently(read: Callable[[], T], what: str, seconds: float) -> T:
    """Calls `read` until it succeeds, with growing pauses: time-outs, 5xx and the like pass.

    Args:
        what: Names what is read, in the message.
        seconds: For so long.

    Raises:
        StoreError: it did not succeed in that time.
        FileNotFoundError, PermissionError: waiting would not help.
    """
    until, wait = time.monotonic() + seconds, _FIRST_WAIT
    while True:
        try:
            return read()
        except _LASTING:
            raise
        except OSError as error:
            left = until - time.monotonic()
            if left <= 0:
                raise StoreError(
                    f"{what}: cannot be read, tried for {seconds:g} s: {_reason(error)}",
                    "Run the same command again when the store answers.",
                ) from None
            time.sleep(min(left, wait * random.uniform(0.5, 1)))
            wait = min(2 * wait, _LONGEST_WAIT)


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """Yields a path beside a local file to write to; it takes the file's name on a clean exit.

    Raises:
        UserError: the folder cannot be written to.
    """
    growing = file.with_name(f".incomplete-{file.name}")
    try:
        yield growing
        growing.replace(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {_reason(error)}") from None
    finally:
        growing.unlink(missing_ok=True)


def check_output(option: str, file: Path | None, *endings: str, overwrite: bool) -> None:
    """Refuses a file that could not be written, or is there already, before any work is done.

    Args:
        option: As it is typed, e.g. `--output`.
        endings: One of which its name must have; none = any.

    Raises:
        UserError: what is wrong, and what to do.
    """
    if file is None:
        return
    if endings and file.suffix not in endings:
        raise UserError(f"{option} {file}: expected a name ending in {', '.join(endings)}")
    if not file.absolute().parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.absolute().parent}; make it first")
    if file.exists() and not overwrite:
        raise UserError(f"{option} {file}: is there already; name another, or give --overwrite")


def is_uri(path: str) -> bool:
    """Tells `s3://bucket/x` from a local path."""
    return "://" in path


def absolute(path: str) -> str:
    """Returns a local path made absolute, with `~` expanded; URIs come back unchanged.

    Raises:
        UserError: the path is relative and the process runs in the temporary copy that
            `ray job submit --working-dir` makes, where results would be lost.
    """
    if is_uri(path):
        return path.rstrip("/")
    local = Path(path).expanduser()
    if not local.is_absolute() and in_temporary_copy():
        raise UserError(
            f"{path!r} is a relative path, and this job runs in the temporary copy of the working "
            "folder that --working-dir made: anything written there is lost.\n"
            "Give absolute paths, e.g.\n"
            f"  ray job submit --working-dir . -- {command('pretrain')} "
            "--runs $PWD/runs --shards_root $PWD/data/shards"
        )
    return os.path.normpath(local.absolute())


def in_temporary_copy() -> bool:
    """Tells whether the working folder is Ray's upload of a `--working-dir`."""
    return "runtime_resources/working_dir_files" in Path.cwd().as_posix()


@dataclass(frozen=True)
class Folder:
    """A folder, local or remote; names below it use `/`."""

    path: str  # absolute path or URI
    fs: pafs.FileSystem
    root: str  # the same place as `fs` names it

    @classmethod
    def at(cls, path: str) -> Folder:
        """Opens a folder by path or URI; it need not exist.

        Raises:
            UserError: the URI's scheme or address is not understood.
        """
        where = absolute(path)
        if not is_uri(where):
            return cls(where, pafs.LocalFileSystem(), where)
        try:
            remote, root = pafs.FileSystem.from_uri(where)
        except Exception as error:
            raise UserError(f"{where}: not a place that pyarrow.fs can open: {error}") from error
        return cls(where, remote, root.rstrip("/"))

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    def below(self, name: str) -> str:
        """Returns the path of a name as `fs` understands it."""
        return f"{self.root}/{name}"

    def create(self) -> None:
        """Makes the folder and its parents, and checks that it can be written to.

        Raises:
            UserError: no write access, or a file stands in the way.
        """
        try:
            self.fs.create_dir(self.root, recursive=True)
            probe = f".write-test-{uuid.uuid4().hex}"
            with self.fs.open_output_stream(self.below(probe)) as out:
                out.write(b"x")
            self.fs.delete_file(self.below(probe))
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written to ({_reason(error)}); "
                "choose another folder or fix its permissions"
            ) from error

    def size(self, name: str) -> int | None:
        """Returns a file's size in bytes, or None where there is no such file."""
        info = self.fs.get_file_info(self.below(name))
        return info.size if info.type == pafs.FileType.File else None

    def names(self, below: str = "") -> list[str]:
        """Returns the sorted names of the files directly in this folder or in one below it."""
        selector = pafs.FileSelector(
            self.below(below) if below else self.root, allow_not_found=True
        )
        infos = self.fs.get_file_info(selector)
        prefix = f"{below}/" if below else ""
        return sorted(prefix + i.base_name for i in infos if i.type == pafs.FileType.File)

    def sizes(self) -> dict[str, int]:
        """Returns the size in bytes of every file directly in this folder, by one listing."""
        infos = self.fs.get_file_info(pafs.FileSelector(self.root, allow_not_found=True))
        return {i.base_name: i.size for i in infos if i.type == pafs.FileType.File}

    def read(self, name: str) -> bytes:
        """Reads a whole file.

        Raises:
            OSError: of a local file; of a remote one that is not there or may not be read.
            StoreError: the store does not answer.
        """

        def read() -> bytes:
            with self.fs.open_input_stream(self.below(name)) as stream:
                return stream.read()

        return self.patiently(read, name)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Reads a part of a file; fewer bytes where it ends before. See `read` for the errors."""

        def read() -> bytes:
            with self.fs.open_input_file(self.below(name)) as file:
                return file.read_at(size, offset)

        return self.patiently(read, name)

    def patiently(self, read: Callable[[], T], name: str, seconds: float = RETRY_SECONDS) -> T:
        """Calls what reads a file; again, for so many seconds, where a remote store fails."""
        return read() if self.is_local else patiently(read, f"{self.path}/{name}", seconds)

    def delete(self, name: str) -> None:
        self.fs.delete_file(self.below(name))

    def write(self, name: str, data: bytes) -> None:
        """Writes a whole file; it is seen complete or not at all."""
        with self.writing(name) as path:
            path.write_bytes(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yields a local path to write to; on a clean exit its content appears as `name`.

        On any error the temporary file is removed and `name` stays as it was.

        Raises:
            UserError: the disk is full, or a quota is used up.
        """
        if self.is_local:
            home = Path(self.root) / INCOMPLETE
            home.mkdir(parents=True, exist_ok=True)
        else:
            home = Path(tempfile.gettempdir())
        growing = home / f"{uuid.uuid4().hex}-{Path(name).name}"
        try:
            yield growing
            self._publish(growing, name)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UserError(
                f"{home}: {_reason(error)} while {name} was written. Nothing written before "
                "is lost. Make room; then run the same command again to continue"
            ) from error
        finally:
            growing.unlink(missing_ok=True)

    def clear_incomplete(self) -> None:
        """Removes what interrupted writers left; call only while nobody writes here."""
        if self.is_local:
            shutil.rmtree(Path(self.root) / INCOMPLETE, ignore_errors=True)

    def _publish(self, growing: Path, name: str) -> None:
        if not self.is_local:
            self._upload(growing, name)
            return
        final = Path(self.below(name))
        final.parent.mkdir(parents=True, exist_ok=True)
        with growing.open("rb") as written:
            os.fsync(written.fileno())  # the name must not outlive the bytes in a power cut
        growing.replace(final)

    def _upload(self, growing: Path, name: str) -> None:
        try:
            with self.fs.open_output_stream(self.below(name)) as out, growing.open("rb") as source:
                shutil.copyfileobj(source, out, _BLOCK)
        except BaseException:  # leaving the block closed the stream, which published a part
            self.fs.delete_file(self.below(name))
            raise


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
