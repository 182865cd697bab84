"""Copies found and videos taken for copies; and how the search grows with the number of segments.

make bench-duplicates        on rendered motion videos, and on real ones where DYNAMONET_REAL_DATA
                             names a folder of them; SEGMENTS=1000000 for the largest search

Beside it vPDQ, where it is installed: pip install vpdq, which needs FFmpeg's headers.
"""

from __future__ import annotations

import importlib
import io
import os
import random
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pyarrow as pa
import torch
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.report import Figure, Watch, in_own_process, peak_bytes, show, table
from data_prep.settings import PrepSettings
from data_prep.shards.duplicates import find_duplicates
from dynamonet import cluster
from dynamonet.copies.fingerprints import (
    BITS,
    RATE,
    STEP,
    VIEWS,
    Fingerprint,
    FingerprintFile,
    Hashes,
    fingerprint,
    thumbnails,
)
from dynamonet.copies.matching import candidates, match_segments
from dynamonet.storage import Folder
from dynamonet.video.decode import open_video, video_stream
from dynamonet.video.files import find_sources

NUM, SECONDS, SIDE = 120, 10, 128
TAR = 1000  # simulated segments in a tar
Frames = NDArray[np.uint8]  # (T, H, W, 3)
Pair = tuple[int, int]


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


class Ours:
    """What stage 1 does."""

    name = "stage 1"

    def fingerprint(self, data: bytes) -> Fingerprint:
        return fingerprint(thumbnails(data))

    def copies(self, originals: list[Fingerprint], copies: list[Fingerprint]) -> set[Pair]:
        pairs: list[Pair] = [(a, b) for a, b in candidates(originals, copies).tolist()]
        return {(a, b) for a, b in pairs if match_segments(originals[a], copies[b]) is not None}


class Vpdq:
    """vPDQ at its defaults: 80 % of one video's pictures, one a second, within 31 of 256 bits."""

    name = "vPDQ"

    def __init__(self) -> None:
        self.compute: Any = importlib.import_module("vpdq").computeHash

    def fingerprint(self, data: bytes) -> Hashes:
        """Returns the hashes (N, 4) of the pictures that vPDQ finds good enough."""
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            file.write(data)
            file.flush()
            found = [each.hex for each in self.compute(file.name) if each.quality >= 50]
        return np.frombuffer(bytes.fromhex("".join(found)), np.uint64).reshape(-1, 4)

    def copies(self, originals: list[Hashes], copies: list[Hashes]) -> set[Pair]:
        return {
            (a, b)
            for a, one in enumerate(originals)
            for b, other in enumerate(copies)
            if self._within(other, one) or self._within(one, other)
        }

    def _within(self, query: Hashes, whole: Hashes) -> bool:
        if not len(query) or not len(whole):
            return False
        bits = np.bitwise_count(query[:, None] ^ whole).sum(2, dtype=np.int64)
        return bool((bits.min(1) <= 31).mean() >= 0.8)


def methods() -> list[Any]:
    """Returns what finds copies here, ours first."""
    try:
        return [Ours(), Vpdq()]
    except ImportError:
        return [Ours()]


def quality(title: str, videos: list[tuple[str, Frames, float]]) -> tuple[list[Table], Figure]:
    """Plants copies and counts those that are found, and pairs of videos taken for copies."""
    finders = methods()
    made = table(f"{title}: {len(videos)} videos", "copy", *(each.name for each in finders))
    files = [encoded(frames, fps, 23, SIDE) for _, frames, fps in videos]
    originals = [[each.fingerprint(data) for data in files] for each in finders]
    least = 1.0
    for name, (change, crf, side) in COPIES.items():
        files = [encoded(change(frames, fps), fps, crf, side) for _, frames, fps in videos]
        hits = []
        for each, known in zip(finders, originals, strict=True):
            found = each.copies(known, [each.fingerprint(data) for data in files])
            hits.append(sum((n, n) in found for n in range(len(videos))))
        made.add_row(name, *map(str, hits))
        if name in MILD:
            least = min(least, hits[0] / len(videos))
    alike = [
        {(a, b) for a, b in each.copies(known, known) if a < b}
        for each, known in zip(finders, originals, strict=True)
    ]
    among = len(videos) * (len(videos) - 1) // 2
    made.add_row(f"pairs of the originals, of {among:,}", *(str(len(found)) for found in alike))
    names = [f"{videos[a][0]} = {videos[b][0]}" for a, b in sorted(alike[0])]
    made.caption = "\n".join(["Originals taken for copies by stage 1:", *names]) if names else None
    return [made], Figure(f"recall_{title}", least, 0.95)


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
        FingerprintFile.of(folder, name, tars[name]).write(made)
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


def growth(most: int) -> tuple[Table, Figure]:
    """Times the search on ever more segments, a hundredth of them copies."""
    made = table(
        "Search among simulated segments of ten seconds",
        *("segments", "seconds", "copies", "planted", "driver GB", "a task GB"),
    )
    sizes = sorted({most // 100, most // 10, most})
    drivers = []
    for num in sizes:
        with tempfile.TemporaryDirectory(prefix="bench-duplicates-") as folder:
            seconds, found, planted, driver, task = in_own_process(search, folder, num)
        drivers.append(driver / 1e9)
        share, memory = f"{planted} of {num // 100}", (f"{driver / 1e9:.2f}", f"{task / 1e9:.2f}")
        made.add_row(f"{num:,}", f"{seconds:.0f}", f"{found:,}", share, *memory)
    grown = (drivers[-1] - drivers[0]) / (sizes[-1] - sizes[0]) * 1e6
    return made, Figure("driver_gigabytes_a_million", grown, 2, at_least=False)


def main() -> None:
    """Prints the tables and the figures."""
    tables, figure = quality("motion_videos", rendered())
    figures = [figure]
    if root := os.environ.get("DYNAMONET_REAL_DATA"):
        more, figure = quality("real_videos", real(root))
        tables, figures = tables + more, [*figures, figure]
    grown, figure = growth(int(os.environ.get("SEGMENTS", "100000")))
    show([*tables, grown], [*figures, figure])


if __name__ == "__main__":
    main()
