"""Videos of many formats, and files that were videos: bits flipped, cut, swapped, lied to."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError, InvalidDataError

from data_prep.shards.manifest import load_sources
from dynamonet.child_process import ChildFailed, Limits, call, heartbeat
from dynamonet.shards import index
from dynamonet.storage import Folder
from dynamonet.video.decode import open_video, video_stream

FORMATS = {  # name of the file: codec, pixel format
    "h264.mp4": ("libx264", "yuv420p"),
    "hevc.mp4": ("libx265", "yuv420p"),
    "h264.mkv": ("libx264", "yuv420p"),
    "mpeg4.avi": ("mpeg4", "yuv420p"),
    "mjpeg.mov": ("mjpeg", "yuvj422p"),
    "vp9.webm": ("libvpx-vp9", "yuv420p"),
    "h264.ts": ("libx264", "yuv420p"),
    "flv1.flv": ("flv", "yuv420p"),
    "picture.gif": ("gif", "rgb8"),
}
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def render_formats(folder: Path, *, frames: int = 30, fps: int = 12) -> list[Path]:
    """Writes one video of moving noise, 96 x 64, in each format."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, (codec, pix_fmt) in FORMATS.items():
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=fps)
            stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
            stream.thread_count = 1
            for t in range(frames):
                moved = np.ascontiguousarray(np.roll(picture, 2 * t, 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(moved)))
            container.mux(stream.encode(None))
        made.append(folder / name)
    return made


def write_mutants(originals: list[Path], folder: Path, count: int, *, seed: int = 0) -> None:
    """Writes `count` damaged files, each original and each kind of damage in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        original = originals[number % len(originals)]
        kind = KINDS[number // len(originals) % len(KINDS)]
        data = kind(bytearray(original.read_bytes()), draw)
        (folder / f"{number:04d}-{kind.__name__}-{original.name}").write_bytes(data)


def flip_bits(data: bytearray, draw: random.Random) -> bytes:
    for _ in range(draw.choice((1, 4, 16, 256))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def truncate(data: bytearray, draw: random.Random) -> bytes:
    return bytes(data[: draw.randrange(1, len(data))])


def lie_in_the_header(data: bytearray, draw: random.Random) -> bytes:
    """Sets numbers of the header to extremes; of mp4 in moov, wherever that lies."""
    start = max(data.find(b"moov"), 0)
    end = min(len(data), start + 1200)
    for _ in range(draw.choice((1, 2, 6))):
        size = draw.choice((1, 2, 4))
        value = draw.choice(EXTREMES) & (256**size - 1)
        at = draw.randrange(start, end - size)
        data[at : at + size] = value.to_bytes(size, "big")
    return bytes(data)


def lie_about_time(data: bytearray, draw: random.Random) -> bytes:
    """Changes the time stamps of mp4; of other containers, some number near the start."""
    at = draw.choice([data.find(name) for name in (b"stts", b"mdhd", b"mvhd", b"elst", b"ctts")])
    if at < 0:
        return lie_in_the_header(data, draw)
    place = at + 4 + 4 * draw.randrange(1, 5)
    data[place : place + 4] = draw.choice(EXTREMES).to_bytes(4, "big")
    return bytes(data)


def swap_boxes(data: bytearray, draw: random.Random) -> bytes:
    """Exchanges two stretches: the boxes of mp4, blocks of other containers."""
    cuts, at = [0], 0
    while data[4:8] == b"ftyp" and at + 8 <= len(data):
        at += max(8, int.from_bytes(data[at : at + 4], "big"))
        cuts.append(min(at, len(data)))
    if len(cuts) < 3:
        cuts = [0, *sorted(draw.sample(range(1, len(data)), 4)), len(data)]
    parts = [bytes(data[a:b]) for a, b in itertools.pairwise(cuts)]
    draw.shuffle(parts)
    return b"".join(parts)


def blank(data: bytearray, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    end = min(len(data), at + draw.choice((16, 512, 4096)))
    data[at:end] = bytes(end - at)
    return bytes(data)


def lose_a_part(data: bytearray, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    del data[at : at + draw.choice((1, 17, 1024))]
    return bytes(data) or b"\0"


def repeat_a_part(data: bytearray, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    part = data[at : at + draw.choice((64, 4096))]
    return bytes(data[:at] + part * draw.choice((2, 50)) + data[at:])


KINDS: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    flip_bits,
    lie_in_the_header,
    truncate,
    lie_about_time,
    swap_boxes,
    blank,
    lose_a_part,
    repeat_a_part,
)


def lost(videos: Path, output: Path) -> dict[str, str]:
    """Returns what of the videos is neither in the set nor in quarantine, by name, in words.

    Each frame that a plain decoder gets out of a file must lie in a segment, or in a stretch in
    quarantine with a reason; where times jump, there must be room for as many frames.
    """
    folder = Folder.at(str(output))
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    whole = set()
    for name in (index.INDEX, index.QUARANTINE):
        for row in index.read_table(folder, name).to_pylist():
            if row["start_seconds"] is None:
                whole.add(row["source"])
            else:
                spans[row["source"]].append((row["start_seconds"], row["end_seconds"]))
    gone = {}
    for item in load_sources(folder) or []:
        name, info = item.source.path, item.info
        if name in whole or (info is None and item.rejected):
            continue
        if info is None or name not in spans:
            gone[name] = "no row"
            continue
        try:
            times = call(plain_times, str(videos / name), limits=Limits(stall_seconds=20))
        except ChildFailed:
            continue  # a plain decoder crashes or hangs on it
        frame = float(1 / info.fps)
        if info.steady:
            missing = [t for t in times if not _inside(t, spans[name], frame)]
        else:
            room = sum(end - start for start, end in spans[name]) / frame
            missing = times[math.ceil(room) + 1 :]
        if missing:
            gone[name] = f"{len(missing)} of {len(times)} frames, first at {missing[0]:.3f} s"
    for path in videos.iterdir():
        if path.name not in whole | spans.keys():
            gone[path.name] = "no row"
    return gone


def plain_times(path: str) -> list[float]:
    """Returns the times of the frames that FFmpeg gets out of a file, in seconds."""
    times: list[float] = []
    with open_video(path) as container:
        stream = video_stream(container)
        base, origin = stream.time_base or Fraction(1), stream.start_time or 0
        packets = container.demux(stream)
        while True:
            heartbeat()
            try:
                for frame in next(packets).decode():
                    if isinstance(frame, av.VideoFrame):
                        at = len(times) if frame.pts is None else (frame.pts - origin) * base
                        times.append(float(at))
            except StopIteration:
                return times
            except InvalidDataError:
                continue
            except (FFmpegError, OSError, ValueError):
                return times


def _inside(at: float, spans: list[tuple[float, float]], frame: float) -> bool:
    return at < 0 or any(start - frame <= at <= end + frame for start, end in spans)
