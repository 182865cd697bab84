"""What children are asked to do; imports nothing heavy, for each child imports it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from dynamonet.child_process import heartbeat


def numbers(count: int) -> Iterator[tuple[int, int]]:
    for number in range(count):
        yield number, os.getpid()


def two_then(end: str) -> Iterator[int]:
    yield 0
    yield 1
    if end == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif end == "abort":
        os.abort()
    elif end == "exit":
        os._exit(3)
    elif end == "hang":
        while True:
            pass
    elif end == "swallow memory":
        held = []
        while True:
            held.append(bytearray(1_000_000))
    elif end == "raise":
        raise ValueError("of its own")


def beats(seconds: float) -> float:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        heartbeat()
    return seconds


def killed_unless(marker: str, kills: int) -> Iterator[int]:
    """Yields three numbers; is killed after the second, the first few times."""
    yield 0
    yield 1
    if len(list(Path(marker).iterdir())) < kills:
        (Path(marker) / str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield 2


kept = []


def keep(megabytes: int) -> int:
    kept.append(bytearray(megabytes * 1_000_000))
    return megabytes


class Large:
    """Takes memory while it is unpickled, as modules do while they are imported."""

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return bytearray, (300_000_000,)
