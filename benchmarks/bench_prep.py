"""Stage 1 against the bare ffmpeg command and the calls of video2dataset, and its memory.

make bench-prep                  on rendered videos
VIDEOS=DIR make bench-prep       speeds on your own, H.264 in mp4

Stage 1 is timed from the list of videos to the page and the MLflow run: headers, hashes, segments,
scores, fingerprints, copies, galleries. Ray and its processes have started.

ffmpeg does of this what it can, decode, scale, encode with the same settings, on one thread a file
and as many files at a time as there are cores, and writes plain files. video2dataset is stood for
by the calls of FFmpeg that it makes (0.1, ClippingSubsampler at "all" precision, then
ResolutionSubsampler): one to cut with re-encoding, one to scale each segment, files in between. The
program is that of the wheel imageio-ffmpeg, of the extra `bench`.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import cast

import psutil
from rich.table import Table

from benchmarks.ffmpeg import PROCESSES, as_video2dataset, bare, ffmpeg, over_files, render
from benchmarks.report import Figure, Watch, in_own_process, peak_bytes, ratio, show, table
from data_prep.settings import PrepSettings
from data_prep.shard import shard
from data_prep.shards import pieces
from data_prep.shards.plan import ShardPlan, plan_shards
from data_prep.sources.probe import VideoInfo, inspect
from dynamonet.errors import run_entry
from dynamonet.storage import Folder
from dynamonet.video.files import find_sources

ROUNDS = 3
NUM_VIDEOS, VIDEO_SECONDS = 24, 20
NUM_SHORT = 400  # of two seconds
MANY = 2000  # videos over which memory is watched
LONG_HOURS = 2


def plans_of(videos: Path, settings: PrepSettings) -> list[ShardPlan]:
    folder = Folder.at(str(videos))
    found = [(source, inspect(folder, source, 16)) for source in find_sources(folder)[0]]
    usable = [(source, info) for source, info in found if isinstance(info, VideoInfo)]
    return plan_shards(usable, {}, [], settings)


def stage_one(videos: Path, folder: Path) -> None:
    """Does all of stage 1, in silence."""
    shutil.rmtree(folder / "set", ignore_errors=True)
    words = {"source": str(videos), "output": str(folder / "set"), "runs": str(folder / "runs")}
    with redirect_stdout(io.StringIO()):
        shard(PrepSettings.model_validate(words))


def speed(name: str, videos: Path, folder: Path) -> tuple[Table, list[Figure]]:
    """Times stage 1 and both chains of ffmpeg, in turns."""
    from dynamonet import cluster

    files = sorted(videos.rglob("*.mp4"))
    total = sum(plan.seconds for plan in plans_of(videos, PrepSettings()))
    runs: dict[str, Callable[[], None]] = {
        "stage 1": lambda: stage_one(videos, folder / "own"),
        "bare ffmpeg": lambda: over_files(bare, files, folder / "bare"),
        "calls of video2dataset": lambda: over_files(as_video2dataset, files, folder / "v2d"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with cluster.connected():
        stage_one(videos, folder / "own")  # its processes start
        for _ in range(ROUNDS):
            for what, run in runs.items():
                before = time.perf_counter()
                run()
                seconds[what].append(time.perf_counter() - before)
    own = seconds["stage 1"]
    title = f"{len(files)} videos, {total:.0f} s, on {PROCESSES} cores"
    made = table(title, "", "seconds", "x real time", "stage 1 by it")
    for what, times in seconds.items():
        middle = statistics.median(times)
        made.add_row(what, f"{middle:.1f}", f"{total / middle:.0f}", f"{ratio(times, own):.2f}")
    return made, [
        Figure(f"prep_of_bare_ffmpeg_{name}", ratio(seconds["bare ffmpeg"], own), 0.9),
        Figure(f"prep_over_video2dataset_{name}", ratio(seconds["calls of video2dataset"], own), 3),
    ]


def children(videos: Path) -> tuple[Table, list[Figure]]:
    """Compares the processor's time with and without a child process, in this one and its child.

    Time on the clock would not do: the child works while its caller writes.
    """
    settings, folder = PrepSettings(), Folder.at(str(videos))
    work = [piece for plan in plans_of(videos, settings) for piece in plan.pieces]

    def seconds(transcode: Callable[..., object]) -> float:
        before = family_seconds()
        for piece in work:
            deque(cast(Iterator[object], transcode(piece, folder, settings)), maxlen=0)
        return family_seconds() - before

    seconds(pieces.encoded)  # its child starts
    shares = [seconds(pieces.encoded) / seconds(pieces._transcoded) for _ in range(2 * ROUNDS)]
    cost = statistics.median(shares)
    made = table("Transcoding in a child process", "", "CPU time by that without one")
    made.add_row(f"median of {len(shares)} rounds", f"{cost:.3f}")
    return made, [Figure("cost_of_children", cost, 1.03, at_least=False)]


def family_seconds() -> float:
    here = psutil.Process()
    family = [here, *here.children()]
    return sum(sum(process.cpu_times()[:2]) for process in family)


def memory(folder: Path) -> tuple[Table, list[Figure]]:
    """Makes shards of many short videos and watches driver and workers."""
    render(folder / "few", 20, 2, height=120)
    many = folder / "many"
    many.mkdir()
    for number in range(MANY):
        data = (folder / f"few/{number % 20:04d}.mp4").read_bytes()
        box = (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")  # makes it another file
        (many / f"{number:05d}.mp4").write_bytes(data + box)
    words = ["--source", str(many), "--output", str(folder / "many-set"), "--shard_mb", "1"]
    words += ["--runs", str(folder / "runs")]
    driver = subprocess.Popen(
        [sys.executable, "data_prep/shard.py", *words], stdout=subprocess.DEVNULL
    )
    watch = Watch(psutil.Process(driver.pid), "ray::encode", "ray::build")
    if driver.wait():
        raise RuntimeError("stage 1 failed")
    rows = [row for row in watch.rows if row[1]]  # while shards are made
    fifth = max(1, len(rows) // 5)
    made = table(f"Resident memory over {MANY:,} videos, MB", "", "early", "late")
    figures = []
    for place, name in enumerate(("driver", "worker with its child")):
        early, late = (
            statistics.median(row[place] for row in part) / 1e6
            for part in (rows[fifth : 2 * fifth] or rows, rows[-fifth:])
        )
        made.add_row(name, f"{early:.0f}", f"{late:.0f}")
        title = f"memory_growth_{name.split()[0]}"
        figures.append(Figure(title, late / early, 1.05, at_least=False))
    return made, figures


def long_source(folder: Path) -> tuple[Table, list[Figure]]:
    """Transcodes a source of two hours and looks at the most memory that it took."""
    render(folder / "minute", 1, 60, height=120)
    long = folder / "long/long.mp4"
    long.parent.mkdir()
    ffmpeg(
        *("-stream_loop", str(LONG_HOURS * 60 - 1), "-i", str(folder / "minute/0000.mp4")),
        *("-c", "copy", str(long)),
    )
    peaks = {
        "1 minute": in_own_process(peak_of, folder / "minute"),
        f"{LONG_HOURS} hours": in_own_process(peak_of, folder / "long"),
    }
    made = table("One source as one piece", "", "peak MB", "source MB")
    sizes = [(folder / "minute/0000.mp4").stat().st_size, long.stat().st_size]
    for (name, peak), size in zip(peaks.items(), sizes, strict=True):
        made.add_row(name, f"{peak / 1e6:.0f}", f"{size / 1e6:.0f}")
    short, full = peaks.values()
    return made, [Figure("memory_of_2_hours_by_1_minute", full / short, 1.1, at_least=False)]


def peak_of(videos: Path) -> int:
    """Transcodes a whole source as one piece in this process; returns its peak memory."""
    settings = PrepSettings(shard_mb=1e6)
    for plan in plans_of(videos, settings):
        for piece in plan.pieces:
            for _ in pieces._transcoded(piece, Folder.at(str(videos)), settings):
                pass
    return peak_bytes()


def main() -> None:
    """Prints the tables and the figures."""
    with tempfile.TemporaryDirectory(prefix="bench-prep-") as name:
        folder = Path(name)
        render(folder / "some", 6, 20)
        render(folder / "videos", NUM_VIDEOS, VIDEO_SECONDS)
        render(folder / "short", NUM_SHORT, 2, height=240)
        own = os.environ.get("VIDEOS")
        kinds = {"yours": Path(own)} if own else {k: folder / k for k in ("videos", "short")}
        parts = [speed(kind, where.absolute(), folder) for kind, where in kinds.items()]
        parts += [children(folder / "some"), memory(folder), long_source(folder)]
    show([made for made, _ in parts], [f for _, figures in parts for f in figures])


if __name__ == "__main__":
    run_entry(lambda _: main())
