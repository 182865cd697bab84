"""Fingerprints of segments: what a copy keeps and another video does not have.

    mp4 -> 8 pictures a second, 64 x 64 grey -> DCT -> signs of the 64 lowest frequencies    still
                                                    -> signs of their change in 1/2 second   motion

Signs of a DCT outlast new encoding, scaling, brightness and contrast. Twice a second the same is
done for six crops of the picture, so that a cropped copy agrees with one of them. `still` alone
would take everything that a fixed camera sees for one video; `motion` tells it apart.

Source: ours; signs of the DCT after pHash (Zauner, 2010), the rest measured (docs/data.md).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from dynamonet.errors import UserError
from dynamonet.shards import index
from dynamonet.shards.card import RECORDS, repair_command
from dynamonet.storage import Folder
from dynamonet.video.decode import DecodeError, open_video, reason, video_stream

RATE = 8  # pictures a second; a trimmed copy is then at most 1/16 s beside one of them
STEP = 4  # every STEP-th picture has crops, too
GAP = 4  # pictures between the two whose difference is the motion
SIDE = 64
BITS = 64
FLAT = 2.0  # standard deviation in grey levels below which a picture has nothing to compare
# (share of the side, place along the rest from top, from left); the first is the whole picture
VIEWS = (
    (1.0, 0.5, 0.5),
    (0.92, 0.5, 0.5),
    (0.84, 0.5, 0.5),
    (0.9, 0.0, 0.0),
    (0.9, 0.0, 1.0),
    (0.9, 1.0, 0.0),
    (0.9, 1.0, 1.0),
)
VERSION = 1  # another number makes all fingerprints anew
FOLDER = f"{RECORDS}/fingerprints"
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), False),
        pa.field("still", pa.binary(), False),
        pa.field("motion", pa.binary(), False),
        pa.field("energy", pa.binary(), False),
        pa.field("still_views", pa.binary(), False),
        pa.field("motion_views", pa.binary(), False),
    ]
)
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Fingerprint:
    """A segment's fingerprint: T pictures, S = ceil(T / STEP) of them in V views."""

    still: Hashes  # (T,); 0 = a flat picture
    motion: Hashes  # (T,), towards the picture GAP later
    energy: NDArray[np.float16]  # (T,) mean size of that change in grey levels; 0 at the end
    still_views: Hashes  # (V, S)
    motion_views: Hashes  # (V, S)

    @property
    def is_flat(self) -> bool:
        """Tells whether no picture of the segment has anything to compare."""
        return not self.still.any()


def fingerprint(pictures: NDArray[np.uint8]) -> Fingerprint:
    """Returns the fingerprint of pictures (T, SIDE, SIDE), RATE a second."""
    whole = _coefficients(pictures, VIEWS[0])
    flat = np.linalg.norm(whole, axis=1) / SIDE < FLAT
    still = _hashes(whole)
    still[flat] = 0
    change = _change(whole)
    energy = (np.linalg.norm(change, axis=1) / SIDE).astype(np.float16)
    every = [_coefficients(pictures, view) for view in VIEWS[1:]]
    still_views = np.stack([still, *(_hashes(view) for view in every)])
    still_views[:, flat] = 0
    motion = _hashes(change)
    motion_views = np.stack([motion, *(_hashes(_change(view)) for view in every)])
    return Fingerprint(still, motion, energy, still_views[:, ::STEP], motion_views[:, ::STEP])


def thumbnails(data: bytes) -> NDArray[np.uint8]:
    """Decodes a segment to small grey pictures (T, SIDE, SIDE), RATE a second.

    Raises:
        DecodeError: it cannot be opened.
        FFmpegError: it is damaged.
    """
    pictures: list[NDArray[np.uint8]] = []
    scaler = VideoReformatter()  # one for all frames: a frame's own begins anew each time
    with open_video(data) as container:
        stream = video_stream(container)
        stream.thread_count = 1  # tasks are the parallelism
        rate = float(stream.average_rate or RATE)
        for number, frame in enumerate(container.decode(stream)):
            wanted = int(number / rate * RATE + 1e-6) + 1  # pictures up to this frame
            if len(pictures) < wanted:
                small = scaler.reformat(frame, SIDE, SIDE, "gray", interpolation="AREA")
                pictures += [np.asarray(small.to_ndarray(), np.uint8)] * (wanted - len(pictures))
    return np.stack(pictures) if pictures else np.zeros((1, SIDE, SIDE), np.uint8)


def fingerprint_samples(
    path: str, shard: str, rows: list[dict[str, Any]]
) -> Iterator[dict[str, Fingerprint]]:
    """Yields the fingerprints of some of a tar's samples by key; runs in a Ray task.

    Args:
        rows: The samples: key, offset, size.

    Raises:
        UserError: a sample cannot be read.
    """
    folder = Folder.at(path)
    fingerprints: dict[str, Fingerprint] = {}
    try:
        for row in rows:
            data = folder.read_range(shard, row["offset"], row["size"])
            fingerprints[row["key"]] = fingerprint(thumbnails(data))
    except (DecodeError, FFmpegError, OSError) as error:
        raise UserError(
            f"{path}/{shard}: cannot be read: {reason(error)}",
            f"Repair the set with\n  {repair_command(folder)}",
        ) from None
    yield fingerprints


@dataclass(frozen=True)
class FingerprintFile:
    """The file of the fingerprints of a tar's samples."""

    tar_folder: str
    tar: str
    rows: pa.Table  # key, offset, size and digest of the samples
    folder: str  # of the file, below which its name is
    name: str

    @classmethod
    def of(cls, tar_folder: str, tar: str, rows: pa.Table) -> FingerprintFile:
        """Returns the file in which a set has the fingerprints of its own tar."""
        return cls(tar_folder, tar, rows, tar_folder, name_of(tar))

    def is_whole(self) -> bool:
        """Tells whether the file is whole, of this version, and has all the samples."""
        folder = Folder.at(self.folder)
        if not folder.size(self.name):
            return False
        try:
            table = pq.read_table(io.BytesIO(folder.read(self.name)))
            stamp = json.loads((table.schema.metadata or {})[b"dynamonet"])
            version, digests = stamp["version"], stamp["digests"]
            held = set(zip(table["key"].to_pylist(), digests, strict=True))
        except (pa.ArrowException, OSError, ValueError, KeyError):
            return False
        wanted = zip(self.rows["key"].to_pylist(), self.rows["digest"].to_pylist(), strict=True)
        return version == VERSION and held.issuperset(wanted)

    def write(self, fingerprints: dict[str, Fingerprint]) -> None:
        """Writes the fingerprints of the samples, which are given by key."""
        keys = self.rows["key"].to_pylist()
        columns: dict[str, list[object]] = {"key": keys}
        for name in SCHEMA.names[1:]:
            columns[name] = [getattr(fingerprints[key], name).tobytes() for key in keys]
        stamp = {"version": VERSION, "digests": self.rows["digest"].to_pylist()}
        about = {b"dynamonet": json.dumps(stamp).encode()}
        table = pa.Table.from_pydict(columns, SCHEMA.with_metadata(about))
        index.write_table(Folder.at(self.folder), self.name, table)


def fingerprint_tar(
    file: FingerprintFile, given: Mapping[int, Iterable[dict[str, Fingerprint]]]
) -> None:
    """Writes the fingerprints of a tar's samples; runs in a Ray task.

    Args:
        given: What `fingerprint_samples` yielded, by the place of the first row.
    """
    parts = (part for parts in given.values() for part in parts)
    file.write({key: item for part in parts for key, item in part.items()})


def name_of(tar: str, digest: str | None = None) -> str:
    """Returns the name of the file of a tar's fingerprints.

    Args:
        digest: Of the set that the tar is of, where it is another than the one being made.
    """
    of_set = f"{digest}-" if digest else ""
    return f"{FOLDER}/{of_set}{tar.removesuffix('.tar')}.parquet"


def read_fingerprints(folder: str, name: str, keys: list[str]) -> list[Fingerprint]:
    """Reads the fingerprints of some samples from a file."""
    table = pq.read_table(io.BytesIO(Folder.at(folder).read(name)))
    place = {key: n for n, key in enumerate(table["key"].to_pylist())}
    return [_read(row) for row in table.take([place[key] for key in keys]).to_pylist()]


def _read(row: dict[str, bytes]) -> Fingerprint:
    hashes = {name: np.frombuffer(row[name], np.uint64) for name in ("still", "motion")}
    views = {
        name: np.frombuffer(row[name], np.uint64).reshape(len(VIEWS), -1)
        for name in ("still_views", "motion_views")
    }
    return Fingerprint(**hashes, energy=np.frombuffer(row["energy"], np.float16), **views)


def _coefficients(
    pictures: NDArray[np.uint8], view: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Returns the BITS lowest frequencies (T, BITS), without the mean, of a crop of pictures."""
    share, top, left = view
    side = round(SIDE * share)
    y, x = round((SIDE - side) * top), round((SIDE - side) * left)
    cut = pictures[:, y : y + side, x : x + side].astype(np.float32)
    waves, rows, columns = _basis(side)
    return (waves @ cut @ waves.T)[:, rows, columns]


@cache
def _basis(side: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Returns the waves (K, side) of the DCT-II, and which pairs of them are the BITS lowest."""
    pairs = sorted(((u, v) for u in range(16) for v in range(16)), key=lambda p: (sum(p), p))
    lowest = np.array(pairs[1 : BITS + 1])
    place = np.arange(side) + 0.5
    waves = np.cos(np.pi * np.outer(np.arange(lowest.max() + 1), place) / side)
    return (waves * np.sqrt(2 / side)).astype(np.float32), lowest[:, 0], lowest[:, 1]


def _change(coefficients: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the change until GAP pictures later; none where there is no such picture."""
    later = coefficients[np.minimum(np.arange(len(coefficients)) + GAP, len(coefficients) - 1)]
    change = later - coefficients
    change[max(0, len(coefficients) - GAP) :] = 0
    return change


def _hashes(values: NDArray[np.float32]) -> Hashes:
    """Returns the signs of (T, 64) numbers as (T,) hashes."""
    return np.ascontiguousarray(np.packbits(values > 0, axis=1)).view(np.uint64)[:, 0]
