"""Stage 1 against the bare ffmpeg command and the calls of video2dataset, and its memory.

make bench-prep                  on rendered videos
VIDEOS=DIR make bench-prep       speeds on your own, H.264 in mp4

ffmpeg does what stage 1 does, decode, scale, encode with the same settings, on one thread a file
and two files at a time, and writes plain files. video2dataset is stood for by the calls of FFmpeg
that it makes (0.1, ClippingSubsampler at "all" precision, then ResolutionSubsampler): one to cut
with re-encoding, one to scale each segment, files in between. Both need ffmpeg on the PATH.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import psutil
from rich.table import Table

from benchmarks.report import Figure, in_own_process, peak_bytes, ratio, show, table
from data_prep.builder import Build
from data_prep.segments.transcode import X264_PARAMS
from data_prep.settings import EncodeSettings, PrepSettings
from data_prep.shards import pieces
from data_prep.shards.plan import ShardPlan, plan_shards
from data_prep.sources.probe import VideoInfo, inspect
from dynamonet.storage import Folder
from dynamonet.video.files import find_sources

PROCESSES, ROUNDS = 2, 3
NUM_VIDEOS, VIDEO_SECONDS = 24, 20
MANY = 2000  # videos over which memory is watched
LONG_HOURS = 2
ENCODE = EncodeSettings()
SCALE = r"scale=-2:'min(128,ih)':flags=bicubic"


def render(folder: Path, count: int, seconds: float, height: int = 360) -> None:
    """Writes drifting textures of 30 frames/s, H.264 in mp4."""
    folder.mkdir(parents=True)
    for number in range(count):
        source = f"testsrc2=size={height * 16 // 9 // 2 * 2}x{height}:rate=30:duration={seconds}"
        words = ["-f", "lavfi", "-i", source, "-vf", f"hue=h={number * 15},noise=alls=6"]
        ffmpeg(*words, "-c:v", "libx264", "-pix_fmt", "yuv420p", str(folder / f"{number:04d}.mp4"))


def ffmpeg(*words: str) -> None:
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-y", *words]
    subprocess.run(command, check=True)


def bare(file: Path, output: Path) -> None:
    """Decode, scale and encode by the command line, with the settings of stage 1, in segments."""
    ffmpeg(
        *("-threads", "1", "-i", str(file), "-an", "-vf", SCALE, "-filter_threads", "1"),
        *("-pix_fmt", "yuv420p", "-c:v", "libx264", "-threads", "1", "-preset", ENCODE.preset),
        *("-crf", str(ENCODE.crf), "-tune", "fastdecode", "-x264-params", X264_PARAMS),
        *("-g", "30", "-force_key_frames", "expr:gte(t,n_forced*10)"),
        *("-f", "segment", "-segment_time", "10", "-reset_timestamps", "1"),
        str(output / f"{file.stem}-%03d.mp4"),
    )


def as_video2dataset(file: Path, output: Path) -> None:
    """Cuts with re-encoding, then scales each segment, through files."""
    cut = output / f"{file.stem}-cut"
    cut.mkdir()
    ffmpeg(
        *("-i", str(file), "-force_key_frames", "10,20,30,40,50,60", "-an"),
        *("-f", "segment", "-segment_times", "10,20,30,40,50,60", "-reset_timestamps", "1"),
        *("-c:v", "libx264", str(cut / "%05d.mp4")),
    )
    for segment in sorted(cut.iterdir()):
        scaled = str(output / f"{file.stem}-{segment.name}")
        ffmpeg("-i", str(segment), "-vf", SCALE, "-an", scaled)


def over_files(work: Callable[[Path, Path], None], files: list[Path], folder: Path) -> None:
    """Runs a command for each file, two at a time."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(lambda file: work(file, folder), files))


def plans_of(videos: Path, settings: PrepSettings) -> list[ShardPlan]:
    folder = Folder.at(str(videos))
    found = [(source, inspect(folder, source, 16)) for source in find_sources(folder)[0]]
    usable = [(source, info) for source, info in found if isinstance(info, VideoInfo)]
    return plan_shards(usable, {}, [], settings)


def shards(plans: list[ShardPlan], videos: Path, folder: Path) -> None:
    """Makes the tars of stage 1 on two cores."""

    shutil.rmtree(folder, ignore_errors=True)
    build = Build(PrepSettings(), Folder.at(str(videos)), Folder.at(str(folder)), lambda *_: None)
    build.write_missing(plans)


def speed(folder: Path) -> tuple[Table, list[Figure]]:
    """Times stage 1 and both chains of ffmpeg, in turns."""
    from dynamonet import cluster

    videos = Path(os.environ.get("VIDEOS", folder / "videos")).absolute()
    if not videos.exists():
        render(videos, NUM_VIDEOS, VIDEO_SECONDS)
    files = sorted(videos.rglob("*.mp4"))
    plans = plans_of(videos, PrepSettings(shard_mb=4))
    total = sum(plan.seconds for plan in plans)
    runs: dict[str, Callable[[], None]] = {
        "stage 1": lambda: shards(plans, videos, folder / "set"),
        "bare ffmpeg": lambda: over_files(bare, files, folder / "bare"),
        "calls of video2dataset": lambda: over_files(as_video2dataset, files, folder / "v2d"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with cluster.connected():
        shards(plans, videos, folder / "set")  # its processes start
        for _ in range(ROUNDS):
            for name, run in runs.items():
                before = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - before)
    own = seconds["stage 1"]
    title = f"{len(files)} videos, {total:.0f} s, on {PROCESSES} cores"
    made = table(title, "", "x real time", "stage 1 by it")
    for name, times in seconds.items():
        made.add_row(name, f"{total / statistics.median(times):.0f}", f"{ratio(times, own):.2f}")
    return made, [
        Figure("prep_of_bare_ffmpeg", ratio(seconds["bare ffmpeg"], own), 0.9),
        Figure("prep_over_video2dataset", ratio(seconds["calls of video2dataset"], own), 3),
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


class Watch:
    """The memory of stage 1's driver and of the processes that make shards, once a second."""

    def __init__(self, driver: psutil.Process) -> None:
        self.driver, self.rows = driver, []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while self.driver.is_running() and self.driver.status() != psutil.STATUS_ZOMBIE:
            try:
                self.rows.append((self.driver.memory_info().rss, self._workers()))
            except psutil.Error:
                return
            time.sleep(1)

    def _workers(self) -> int:
        """Returns the memory of the largest worker with its child."""
        most = 0
        for process in self.driver.children(recursive=True):
            try:
                if process.name().startswith("ray::build"):
                    family = [process, *process.children(recursive=True)]
                    most = max(most, sum(p.memory_info().rss for p in family))
            except psutil.Error:
                continue
        return most


def memory(folder: Path) -> tuple[Table, list[Figure]]:
    """Makes shards of many short videos and watches driver and workers."""
    render(folder / "short", 20, 2, height=120)
    many = folder / "many"
    many.mkdir()
    for number in range(MANY):
        os.link(folder / f"short/{number % 20:04d}.mp4", many / f"{number:05d}.mp4")
    words = ["--source", str(many), "--output", str(folder / "many-set"), "--shard_mb", "1"]
    words += ["--runs", str(folder / "runs")]
    driver = subprocess.Popen(
        [sys.executable, "data_prep/shard.py", *words], stdout=subprocess.DEVNULL
    )
    watch = Watch(psutil.Process(driver.pid))
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
        parts = [speed(folder), children(folder / "some"), memory(folder), long_source(folder)]
    show([made for made, _ in parts], [f for _, figures in parts for f in figures])


if __name__ == "__main__":
    main()
