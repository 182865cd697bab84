"""Children that crash, hang, swallow memory and are killed, for real."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dynamonet.child_process import ChildFailed, Limits, call, stream
from tests.conftest import ROOT
from tests.dynamonet.children import Large, beats, keep, killed_unless, numbers, two_then

QUICK = Limits(stall_seconds=1.0, memory_mb=200)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("segfault", "crashed the decoder (SIGSEGV)"),
        ("abort", "crashed the decoder (SIGABRT)"),
        ("exit", "crashed the decoder (status 3)"),
        ("hang", "no progress for 1 s"),
        ("swallow memory", "took more than 200 MB of memory"),
        ("raise", "ValueError: of its own"),
    ],
)
def test_a_child_that_fails_gives_what_it_had_and_the_reason_and_is_replaced(
    end: str, reason: str
) -> None:
    items = []
    with pytest.raises(ChildFailed) as failed:
        for item in stream(two_then, end, limits=QUICK):
            items.append(item)
    assert (items, str(failed.value)) == ([0, 1], reason)
    assert [n for n, _ in stream(numbers, 3, limits=QUICK)] == [0, 1, 2]


def test_a_child_works_again_and_again_and_is_another_process() -> None:
    found = [pid for _ in range(3) for _, pid in stream(numbers, 2, limits=QUICK)]
    assert len(set(found)) == 1 and os.getpid() not in found


def test_two_streams_at_once_do_not_mix() -> None:
    pairs = zip(stream(numbers, 50, limits=QUICK), stream(numbers, 50, limits=QUICK), strict=True)
    for (a, first), (b, second) in pairs:
        assert a == b and first != second


@pytest.mark.slow
def test_work_that_is_slow_but_beats_is_left_alone() -> None:
    assert call(beats, 2.5, limits=QUICK) == 2.5
    beats(0.01)  # does nothing here


def test_items_are_made_as_they_are_taken() -> None:
    taken = stream(numbers, 10**9, limits=QUICK)
    (_, child) = next(taken)
    process = psutil.Process(child)
    time.sleep(0.5)
    busy = process.cpu_times().user
    time.sleep(0.5)
    assert process.cpu_times().user - busy < 0.1  # it waits for its caller
    taken.close()
    assert not psutil.pid_exists(child)


def test_a_child_that_somebody_else_kills_is_not_the_cause(tmp_path: Path) -> None:
    assert list(stream(killed_unless, str(tmp_path), 2, limits=QUICK)) == [0, 1, 2]
    for marker in tmp_path.iterdir():
        marker.unlink()
    with pytest.raises(ChildFailed, match="killed 3 times"):
        list(stream(killed_unless, str(tmp_path), 3, limits=QUICK))


def test_no_child_outlives_its_caller(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from dynamonet.child_process import Limits, stream\n"
        "from tests.dynamonet.children import numbers\n"
        "for item in stream(numbers, 9, limits=Limits()):\n"
        "    print(item[1], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, stdout=-1, timeout=120
    )
    child = int(done.stdout)
    psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=30)
    assert not psutil.pid_exists(child)


def test_memory_that_old_work_keeps_is_not_counted() -> None:
    for _ in range(4):
        assert call(keep, 120, limits=QUICK) == 120


def test_a_limit_holds_for_its_own_work_alone() -> None:
    assert call(len, b"", limits=Limits(memory_mb=64)) == 0
    assert call(len, Large(), limits=Limits(memory_mb=64)) == 300_000_000
