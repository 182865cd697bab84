"""What key frames cost in bytes and save in decoding: one set at several distances between them.

make bench-keyframes             on rendered videos
VIDEOS=DIR make bench-keyframes  on the first of your own
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.bench_data import reader, render_videos
from benchmarks.report import Figure, show, table
from dynamonet.shards.order import Request
from dynamonet.shards.reader import ClipReader
from dynamonet.video.files import find_videos

SECONDS = (2.0, 1.0, 0.5, 0.25)  # between key frames
VIDEOS, CLIPS, ROUNDS = 60, 200, 5


def make_set(videos: Path, folder: Path, seconds: float) -> ClipReader:
    from data_prep.shard import main as shard

    words = f"--source {videos} --output {folder}/{seconds} --runs {folder}/runs "
    words += f"--encode.keyframe_seconds {seconds} --near_duplicates off"
    shard(words.split())
    return reader(f"{folder}/{seconds}")


def milliseconds(source: ClipReader) -> float:
    """Returns how long a clip takes in this process, on one thread."""
    rows = source.first(CLIPS)
    before = time.perf_counter()
    for number in range(CLIPS):
        source[Request(rows[number % len(rows)], seed=number)]
    return 1e3 * (time.perf_counter() - before) / CLIPS


def main() -> None:
    """Prints the table and the figures."""
    from dynamonet import cluster

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench-keyframes-") as name:
        folder = Path(name)
        videos, given = folder / "videos", os.environ.get("VIDEOS")
        if given:
            videos.mkdir()
            for number, video in enumerate(find_videos([given])[0][:VIDEOS]):
                (videos / f"{number}{Path(video.name).suffix}").symlink_to(video.path)
        else:
            render_videos(videos, VIDEOS)
        with cluster.connected():
            readers = {seconds: make_set(videos, folder, seconds) for seconds in SECONDS}
        times: dict[float, list[float]] = {seconds: [] for seconds in SECONDS}
        for source in readers.values():
            milliseconds(source)  # digests are compared at the first visit
        for _ in range(ROUNDS):
            for seconds, source in readers.items():
                times[seconds].append(milliseconds(source))
        size = {s: sum(t.stat().st_size for t in folder.glob(f"{s}/*.tar")) for s in SECONDS}
    made = table("Key frames", "seconds between them", "MB", "bytes by those of 1 s", "ms a clip")
    for seconds in SECONDS:
        ratio = size[seconds] / size[1.0]
        clip = statistics.median(times[seconds])
        made.add_row(f"{seconds:g}", f"{size[seconds] / 1e6:.1f}", f"{ratio:.2f}", f"{clip:.2f}")
    saved = statistics.median(a / b for a, b in zip(times[1.0], times[0.5], strict=True))
    show([made], [Figure("half_a_second_saves", saved, 1.1)])


if __name__ == "__main__":
    main()
