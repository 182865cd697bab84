"""The ffmpeg program: what stage 1 is compared with, and test pictures for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from data_prep.segments.transcode import X264_PARAMS
from data_prep.settings import EncodeSettings
from dynamonet.errors import need

PROCESSES = os.cpu_count() or 1
ENCODE = EncodeSettings()
SCALE = r"scale=-2:'min(128,ih)':flags=bicubic"


def render(folder: Path, count: int, seconds: float, height: int = 360) -> None:
    """Writes different test pictures of 30 frames/s, H.264 in mp4."""
    folder.mkdir(parents=True)
    size = f"{height * 16 // 9 // 2 * 2}x{height}"
    for number in range(count):
        shared = f"size={size}:rate=30:duration={seconds}"
        # without the second all would be copies of each other
        source = (
            f"testsrc2={shared}[lines];gradients={shared}:seed={number}:nb_colors=8:speed=0.02,"
            "format=yuv420p[own];[lines][own]blend=all_mode=average"
        )
        words = ["-f", "lavfi", "-i", source, "-vf", f"noise=alls=6:all_seed={number}"]
        ffmpeg(*words, "-c:v", "libx264", "-pix_fmt", "yuv420p", str(folder / f"{number:04d}.mp4"))


def ffmpeg(*words: str) -> None:
    command = [program(), "-nostdin", "-loglevel", "error", "-y", *words]
    subprocess.run(command, check=True)


@cache
def program() -> str:
    """Returns the path of ffmpeg.

    Raises:
        UserError: the wheel that brings it is not installed.
    """
    wheel = need("imageio_ffmpeg", "bench", "The comparison with ffmpeg needs the program")
    return wheel.get_ffmpeg_exe()


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
    """Runs a command for each file, as many at a time as there are cores."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(lambda file: work(file, folder), files))
