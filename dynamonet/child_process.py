"""Work that may crash, hang or swallow memory, in a child process that is killed and replaced.

    caller -- function, arguments -->  child
    caller <-- item, beat, item, ...   child: `for item in function(*arguments)`

FFmpeg is C code that reads strangers' files. A file that kills it, or on which it never ends, kills
a child; the caller gets `ChildFailed` with the reason and goes on with a fresh child. One item at a
time is under way. A child lives on from call to call, and no longer than its caller.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from dynamonet.settings import Settings

T = TypeVar("T")
BEAT_SECONDS = 0.2  # least time between two beats
START_SECONDS = 300  # in which a child starts and imports, on however busy a machine
TRIES = 3  # for work whose process is killed by somebody else, as by a machine short of memory
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h


class Limits(Settings):
    """When the decoding of one video is given up."""

    stall_seconds: float = Field(
        default=120.0, gt=0, description="Longest time without a decoded frame, in seconds."
    )
    video_seconds: float = Field(
        default=3600.0,
        gt=0,
        description="Longest time that one piece of a video may take, in seconds.",
    )
    memory_mb: int = Field(
        default=2048, ge=64, description="Memory that decoding one video may take, in megabytes."
    )


DEFAULT_LIMITS = Limits()


class ChildFailed(Exception):
    """Work in a child came to no end; the message says why. The work may raise it itself."""


class _KilledFromOutside(Exception):
    """Another process killed the child; its work and limits are not the cause."""


def stream(
    function: Callable[..., Iterable[T]], *arguments: object, limits: Limits
) -> Generator[T, None, None]:
    """Yields the items of `function(*arguments)`, which runs in a child.

    The function is one of a module, and calls `heartbeat` as it proceeds. It must give the same
    items each time: if somebody else kills the child, it is run again up to where it was.

    Raises:
        ChildFailed: it raised, crashed, stood still or wanted too much memory.
    """
    given = 0
    for _ in range(TRIES):
        try:
            with closing(_run(function, arguments, limits)) as items:
                for item in itertools.islice(items, given, None):
                    given += 1
                    yield item
            return
        except _KilledFromOutside:
            continue
    raise ChildFailed(f"its process was killed {TRIES} times: the machine may be short of memory")


def call(function: Callable[..., T], *arguments: object, limits: Limits) -> T:
    """Returns `function(*arguments)`, which runs in a child; see `stream`."""
    (result,) = stream(_only, function, arguments, limits=limits)
    return result


def heartbeat() -> None:
    """Tells the caller, if there is one, that work goes on. Costs next to nothing."""
    global _next_beat
    if _caller is not None and time.monotonic() >= _next_beat:
        _caller.send(("beat", None))
        _next_beat = time.monotonic() + BEAT_SECONDS


_caller: Connection | None = None  # in a child: the pipe to its caller
_next_beat = 0.0


class _Child:
    """A process that waits for work."""

    def __init__(self) -> None:
        self.pipe, theirs = Pipe()
        code = "from dynamonet.child_process import _serve; "
        code += f"_serve({theirs.fileno()}, {os.getpid()})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        theirs.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


_idle: list[_Child] = []
os.register_at_fork(after_in_child=_idle.clear)


@atexit.register
def _end() -> None:
    while _idle:
        _idle.pop().kill()


def _run(
    function: Callable[..., Iterable[T]], arguments: tuple[object, ...], limits: Limits
) -> Generator[T, None, None]:
    """Runs a function in an idle or a fresh child, which is idle again after a proper end."""
    child = _idle.pop() if _idle else _Child()
    begun = ended = False
    try:
        child.pipe.send_bytes(pickle.dumps((limits.memory_mb, function, arguments)))
        deadline = time.monotonic() + START_SECONDS + limits.video_seconds
        while True:
            if not child.pipe.poll(limits.stall_seconds if begun else START_SECONDS):
                raise ChildFailed(f"no progress for {limits.stall_seconds:g} s")
            if not begun:
                deadline = time.monotonic() + limits.video_seconds
            elif time.monotonic() > deadline:
                raise ChildFailed(f"not done after {limits.video_seconds:g} s")
            kind, value = child.pipe.recv()
            begun, ended = True, kind in ("end", "error")
            if kind == "item":
                yield value
            elif kind == "error":
                raise ChildFailed(value)
            elif kind == "end":
                return
    except (EOFError, ConnectionError):
        raise _why_died(child.process.wait(), begun) from None
    finally:
        if ended:
            _idle.append(child)
        else:
            child.kill()


def _why_died(status: int, begun: bool) -> Exception:
    if -status in _FROM_OUTSIDE:
        return _KilledFromOutside()
    if not begun and status >= 0:
        return RuntimeError(f"{sys.executable}: a child process could not start: status {status}")
    name = signal.Signals(-status).name if status < 0 else f"status {status}"
    return ChildFailed(f"crashed the decoder ({name})")


def _serve(pipe: int, parent: int) -> None:
    """Does what comes through a pipe until it is closed; a child's main function."""
    global _caller
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to answer
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # died before the line above
        return
    _caller = Connection(pipe)
    with suppress(EOFError, ConnectionError):
        while True:
            _work(_caller, _caller.recv_bytes())


def _work(caller: Connection, job: bytes) -> None:
    _limit_memory(None)  # what is imported is not the work's
    memory_mb, function, arguments = pickle.loads(job)
    _limit_memory(memory_mb)
    caller.send(("beat", None))
    try:
        for item in function(*arguments):
            caller.send(("item", item))
    except (EOFError, ConnectionError):
        raise
    except MemoryError:
        caller.send(("error", f"took more than {memory_mb} MB of memory"))
    except ChildFailed as error:
        caller.send(("error", str(error)))
    except Exception as error:
        caller.send(("error", f"{type(error).__name__}: {error}"))
    else:
        caller.send(("end", None))


def _limit_memory(more_mb: int | None) -> None:
    """Lets this process take so much memory beyond what it has, whatever it keeps of old work."""
    limit = resource.RLIM_INFINITY
    if more_mb is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        limit = pages * resource.getpagesize() + more_mb * 1_000_000
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def _only(function: Callable[..., T], arguments: tuple[object, ...]) -> Iterator[T]:
    yield function(*arguments)
