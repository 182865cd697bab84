"""A folder on a machine's own disk for what its processes share: remote tars, mapped indexes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynamonet.errors import UserError


def cache_folder(name: str) -> Path:
    """Returns a folder of the cache, `$DYNAMONET_CACHE` or `~/.cache/dynamonet`.

    Raises:
        UserError: it cannot be made.
    """
    root = os.environ.get("DYNAMONET_CACHE") or Path.home() / ".cache" / "dynamonet"
    folder = Path(root) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); set DYNAMONET_CACHE to a folder on a "
            "disk of this machine"
        ) from None
    return folder


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Keeps other processes of this machine out that lock the same file."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_locked(file: Path) -> bool:
    """Returns whether somebody on this machine holds the lock of a file at this moment."""
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
