"""A reader that is killed at any moment and begun again anywhere reads on as if it had not been."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import psutil
import pytest
from torch import Tensor

from dynamonet.digest import digest_of_bytes
from dynamonet.shards.loading import batches
from dynamonet.shards.order import TrainingOrder
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.settings import ClipSettings, LoaderSettings
from dynamonet.shards.shard_set import ShardSet
from tests.conftest import ROOT

STEPS, BATCH = 60, 4


def walk(paths: list[str], shuffle: str, ranks: int, processes: int, first: int) -> None:
    """Prints each step from `first` on: its number, and row and pixels of all ranks' clips."""
    loader = LoaderSettings.model_validate(
        {"batch_size": BATCH, "shuffle": shuffle, "window_shards": 2}
    )
    clips = ClipSettings(canvas_px=32, colour_jitter=0.3, stride_seconds=0.13)
    reader = ClipReader(
        [ShardSet.open(path) for path in paths],
        settings=clips,
        num_frames=9,
        frame_px=28,
        loader=loader,
    )
    plan = reader.plan(loader, ranks, 3, (2.0, 1.0)[: len(paths)])
    found = [
        batches(
            reader,
            TrainingOrder(reader.rows, plan, rank, first, STEPS),
            processes=processes,
            prefetch=2,
        )
        for rank in range(ranks)
    ]
    for step, parts in enumerate(zip(*found, strict=True), first):
        told = [
            f"{row} {digest_of_bytes(pixels.numpy().tobytes() + repr(colour).encode())}"
            for part in parts
            for row, pixels, colour in zip(
                part.row.tolist(), part.pixels, cast("Tensor", part.colour).tolist(), strict=True
            )
        ]
        print(step, *told, flush=True)


def lines_until(
    paths: list[str], shuffle: str, ranks: int, processes: int, first: int, seconds: float | None
) -> list[str]:
    """Walks in another process, which is killed with its loader processes after some seconds."""
    call = f"t.walk({paths!r}, {shuffle!r}, {ranks}, {processes}, {first})"
    script = (
        f"from tests.dynamonet.shards import test_killed as t\nif __name__ == '__main__': {call}"
    )
    reading = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reading.stdout is not None
    lines = [reading.stdout.readline()]  # it has begun
    if seconds is not None:
        time.sleep(seconds)
        family = [*psutil.Process(reading.pid).children(recursive=True)]
        reading.send_signal(signal.SIGKILL)
        for process in family:
            process.kill()
    rest, _ = reading.communicate(timeout=120)
    whole = (lines[0] + rest).splitlines(keepends=True)
    assert seconds is not None or reading.returncode == 0
    return [line.strip() for line in whole if line.endswith("\n")]


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["samples", "shard_window"])
def test_reading_goes_on_the_same_after_any_kill_with_any_ranks_and_processes(
    shard_set: Path, tmp_path: Path, shuffle: str
) -> None:
    (tmp_path / "twin").symlink_to(shard_set)
    paths = [str(shard_set), str(tmp_path / "twin")]
    whole = lines_until(paths, shuffle, 1, 0, 0, None)
    assert len(whole) == STEPS
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    for _ in range(3):
        first = 0
        while first < STEPS:
            ranks, processes = draw.choice([1, 2, 4]), draw.choice([0, 1, 2])
            last_try = draw.random() < 0.4
            seconds = None if last_try else draw.uniform(0, 0.4)
            found = lines_until(paths, shuffle, ranks, processes, first, seconds)
            assert found == whole[first : first + len(found)], f"seed {seed}, from step {first}"
            first = STEPS if last_try else draw.randint(first, first + len(found))
