"""Copies found and videos taken for copies; and how the search grows with the number of segments.

make bench-duplicates        on rendered motion videos, and on real ones where DYNAMONET_REAL_DATA
                             names a folder of them; SEGMENTS=1000000 for the largest search
"""

from __future__ import annotations

import io
import os
import random
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import psutil
import pyarrow as pa
import torch
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.report import Figure, Watch, in_own_process, peak_bytes, show, table
from data_prep.dedup.duplicates import find_duplicates
from data_prep.dedup.fingerprints import (
    BITS,
    RATE,
    STEP,
    VIEWS,
    Fingerprint,
    Hashes,
    Prints,
    fingerprint,
    thumbnails,
)
from data_prep.dedup.matching import candidates, match_segments
from data_prep.settings import PrepSettings
from dynamonet import cluster
from dynamonet.storage import Folder
from dynamonet.video.decode import open_video, video_stream
from dynamonet.video.files import find_sources

NUM, SECONDS, SIDE = 120, 10, 128
TAR = 1000  # simulated segments in a tar
Frames = NDArray[np.uint8]  # (T, H, W, 3)


def cropped(frames: Frames, share: float, place: float = 0.5, *, wide: float = 0.0) -> Frames:
    height, width = frames.shape[1:3]
    h, w = round(height * share), round(width * (wide or share))
    y, x = round((height - h) * place), round((width - w) * place)
    return frames[:, y : y + h, x : x + w]


# (change of the pictures, crf, shorter side)
COPIES: dict[str, tuple[Callable[[Frames, float], Frames], int, int]] = {
    "encoded again at 96 px, crf 35": (lambda f, _: f, 35, 96),
    "brightness +30, contrast x 0.8": (lambda f, _: (f * 0.8 + 30).astype(np.uint8), 28, SIDE),
    "trimmed by 0.37 s": (lambda f, fps: f[round(0.37 * fps) :], 28, SIDE),
    "cropped to 90 %": (lambda f, _: cropped(f, 0.9), 28, SIDE),
    "cropped to 90 % at a corner": (lambda f, _: cropped(f, 0.9, 0.0), 28, SIDE),
    "cropped to 80 %": (lambda f, _: cropped(f, 0.8), 28, SIDE),
    "cropped to 85 % in width alone": (lambda f, _: cropped(f, 1.0, wide=0.85), 28, SIDE),
    "cropped to 92 %, trimmed, 72 px, crf 32": (
        lambda f, fps: cropped(f[round(0.37 * fps) :], 0.92),
        32,
        72,
    ),
}
MILD = [name for name in COPIES if "80 %" not in name and "85 %" not in name]


def rendered() -> list[tuple[str, Frames, float]]:
    """Renders motion videos of three seconds."""
    from demo.motion_videos import render_motion

    labels = torch.arange(NUM) % 9
    videos = render_motion(labels, seed=0, num_frames=36, size_px=96)
    return [(f"{n}", v.permute(0, 2, 3, 1).numpy(), 12.0) for n, v in enumerate(videos)]


def real(root: str) -> list[tuple[str, Frames, float]]:
    """Decodes videos drawn from a folder, at most SECONDS of each."""
    folder = Folder.at(root)
    sources, _ = find_sources(folder)
    found = []
    for source in random.Random(0).sample(sources, min(NUM, len(sources))):
        with open_video(Path(folder.below(source.path)).open("rb")) as container:
            stream = video_stream(container)
            fps = float(stream.average_rate or 25)
            frames = []
            for frame in container.decode(stream):
                scale = SIDE / min(frame.width, frame.height)
                size = [round(side * scale / 2) * 2 for side in (frame.width, frame.height)]
                frames.append(frame.reformat(*size, "rgb24").to_ndarray())
                if len(frames) >= SECONDS * fps:
                    break
        if len(frames) >= fps and len({frame.shape for frame in frames}) == 1:
            found.append((source.path, np.stack(frames), fps))
    return found


def encoded(frames: Frames, fps: float, crf: int, side: int) -> bytes:
    scale = side / min(frames.shape[1:3])
    height, width = (round(s * scale / 2) * 2 for s in frames.shape[1:3])
    file = io.BytesIO()
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(file, "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))
            frame = frame.reformat(width, height, "yuv420p")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def print_from(frames: Frames, fps: float, crf: int = 23, side: int = SIDE) -> Fingerprint:
    return fingerprint(thumbnails(encoded(frames, fps, crf, side)))


def quality(title: str, videos: list[tuple[str, Frames, float]]) -> tuple[list, list[Figure]]:
    """Plants copies and counts those that are found, and pairs of videos taken for copies."""
    made = table(f"{title}: {len(videos)} videos", "copy", "found", "load_sources")
    originals = [print_from(frames, fps) for _, frames, fps in videos]
    recalls = {}
    for name, (change, crf, side) in COPIES.items():
        copies = [print_from(change(f, fps), fps, crf, side) for _, f, fps in videos]
        pairs = set(map(tuple, candidates([*originals, *copies]).tolist()))
        num = len(videos)
        hits = [
            (n, num + n) in pairs and match_segments(originals[n], copies[n]) is not None
            for n in range(num)
        ]
        recalls[name] = sum(hits) / num
        made.add_row(name, str(sum(hits)), f"{recalls[name]:.3f}")
    alike = [
        (videos[a][0], videos[b][0])
        for a, b in candidates(originals).tolist()
        if match_segments(originals[a], originals[b])
    ]
    among = len(list(combinations(originals, 2)))
    made.add_row(f"pairs of the originals taken for copies, of {among:,}", str(len(alike)), "")
    for pair in alike:
        made.add_row("  " + " = ".join(pair), "", "")
    least = min(recalls[name] for name in MILD)
    return [made], [Figure(f"recall_{title}", least, 0.95)]


def simulated(num: int, seed: int) -> list[Fingerprint]:
    """Makes random fingerprints of ten seconds; every hundredth is a copy of the one before."""
    rng = np.random.default_rng(seed)
    length = SECONDS * RATE
    fingerprints: list[Fingerprint] = []
    none = np.zeros(length, np.float16)
    for number in range(num):
        noise = _one_bit(rng, (length,))
        if number % 100 == 1:
            still = np.bitwise_xor(fingerprints[-1].still, noise)
        else:
            start = rng.integers(1, 2**63, 1, np.uint64)
            still = np.bitwise_xor(start, np.bitwise_xor.accumulate(noise))
        crops = _one_bit(rng, (len(VIEWS), length // STEP))
        crops[0] = 0
        views = still[::STEP] ^ crops
        fingerprints.append(Fingerprint(still, still, none, views, views))
    return fingerprints


def _one_bit(rng: np.random.Generator, shape: tuple[int, ...]) -> Hashes:
    """Returns hashes in which one bit each is set."""
    return np.left_shift(np.uint64(1), rng.integers(0, BITS, shape, np.uint64), dtype=np.uint64)


def write_simulated(folder: str, num: int) -> dict[str, pa.Table]:
    """Writes simulated fingerprints as stage 1 does; returns the rows of each tar."""
    tars = {}
    for first in range(0, num, TAR):
        name = f"shard-{first // TAR:05d}-of-{num // TAR:05d}.tar"
        keys = [f"{number:09d}" for number in range(first, first + TAR)]
        rows = {"key": keys, "source": keys, "digest": keys, "start_seconds": [0.0] * TAR}
        rows |= {"end_seconds": [float(SECONDS)] * TAR, "offset": [0] * TAR, "size": [1] * TAR}
        tars[name] = pa.table(rows)
        made = dict(zip(keys, simulated(TAR, first), strict=True))
        Prints.of(folder, name, tars[name]).write(made)
    return tars


def search(folder: str, num: int) -> tuple[float, int, int, int, int]:
    """Looks for copies among simulated segments.

    Returns:
        Seconds, segments taken for copies, those of them that were planted, bytes of the driver,
        bytes of a task.
    """
    tars = write_simulated(folder, num)
    off = {"max_black_share": None, "max_static_share": None}
    settings = PrepSettings.model_validate({"output": folder, "filters": off})
    with cluster.connected():
        watch = Watch(psutil.Process(), "ray::_compare")
        began = time.perf_counter()
        copies = find_duplicates(Folder.at(folder), tars, [], settings, lambda *_: None)
        seconds = time.perf_counter() - began
    found = {(int(row["of_key"]), int(row["key"])) for row in copies.to_pylist()}
    planted = {(number - 1, number) for number in range(1, num, 100)}
    task = max(task for _, task in watch.rows)
    return seconds, len(found), len(found & planted), peak_bytes(), task


def growth(most: int) -> tuple[Table, list[Figure]]:
    """Times the search on ever more segments, a hundredth of them copies."""
    made = table(
        "Search among simulated segments of ten seconds",
        *("segments", "seconds", "copies", "planted", "driver GB", "a task GB"),
    )
    driver = 0.0
    for num in sorted({most // 100, most // 10, most}):
        with tempfile.TemporaryDirectory(prefix="bench-duplicates-") as folder:
            seconds, found, planted, *memory = in_own_process(search, folder, num)
        driver, task = (size / 1e9 for size in memory)
        share = f"{planted} of {num // 100}"
        made.add_row(
            f"{num:,}", f"{seconds:.0f}", f"{found:,}", share, f"{driver:.2f}", f"{task:.2f}"
        )
    return made, [Figure("driver_gigabytes_a_million", driver * 1e6 / most, 4, at_least=False)]


def main() -> None:
    """Prints the tables and the figures."""
    tables, figures = quality("motion_videos", rendered())
    if root := os.environ.get("DYNAMONET_REAL_DATA"):
        more, figure = quality("real_videos", real(root))
        tables, figures = tables + more, figures + figure
    grown, figure = growth(int(os.environ.get("SEGMENTS", "100000")))
    show([*tables, grown], figures + figure)


if __name__ == "__main__":
    main()
