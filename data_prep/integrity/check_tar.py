"""One tar against its record and its rows of the index: what agrees, and which file is wrong.

    tar -> samples (mp4 + json, digest, frames)  --compare-->  rows of the record
                                                 --compare-->  rows of the index

The tar and its record are damaged if they disagree; the index is if only it disagrees.
"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from av.error import FFmpegError

from data_prep.settings import FilterSettings
from data_prep.shards.manifest import Record, read_record, record_name
from data_prep.shards.tables import filtered
from dynamonet.child_process import DEFAULT_LIMITS, ChildFailed, call, heartbeat
from dynamonet.digest import digest_of_bytes
from dynamonet.shards import index
from dynamonet.storage import Folder
from dynamonet.video.decode import DecodeError, open_video, reason, video_stream

_NOT_IN_JSON = ("shard", "offset")


@dataclass(frozen=True)
class Problem:
    """Something in a set that is not as it should be."""

    where: str  # file of the set
    key: str  # sample, or source in the quarantine table; "" = the file as a whole
    found: str
    expected: str

    def __str__(self) -> str:
        key = f" {self.key}" if self.key else ""
        return f"{self.where}{key}: found {self.found}, expected {self.expected}"


@dataclass(frozen=True)
class TarCheck:
    """What one tar's check gave."""

    shard: str
    problems: list[Problem]
    is_good: bool  # the tar and its record are there and agree
    plan: str | None  # from the record, as are the next two; None = no readable record
    shard_row: dict[str, Any] | None
    quarantine: pa.Table | None
    samples: int
    frames: int  # decoded


@dataclass(frozen=True)
class _Sample:
    """A sample as it lies in a tar."""

    offset: int
    data: bytes
    digest: str
    side_car: dict[str, Any]
    shape: tuple[int, int, int] | None = None  # frames, height, width; None = not decoded
    trouble: str = ""  # why it cannot be decoded


@dataclass(frozen=True)
class _Difference:
    """What a tar says and what a table says of it."""

    key: str
    in_tar: str
    in_table: str


def check_tar(
    path: str,
    shard: str,
    rows: pa.Table | None,
    copies: set[str],
    filters: FilterSettings,
    decode: bool,
) -> TarCheck:
    """Checks one tar; runs in a Ray task.

    Args:
        rows: The tar's rows of the index; None if the index cannot be read.
        copies: Keys of the copies that are in their tar and not in the index.
        filters: What they leave out is in its tar and not in the index, either.
        decode: Decode every frame, too.
    """
    folder = Folder.at(path)
    record = read_record(folder, shard)
    known = rows.to_pylist() if rows is not None else None
    own = record.rows.to_pylist() if record else None
    sifted = filtered(record, filters) if record else None
    right_index = sifted.without(copies).rows.to_pylist() if sifted else []
    left_out = {row["key"] for row in own or []} - {row["key"] for row in right_index}
    samples: dict[str, _Sample] = {}
    data, faults = _read(folder, shard)
    if data is not None:
        samples, faults = _samples(data)
        if decode:
            right = {row["digest"] for table in (known, own) for row in table or []}
            samples = {
                key: _decoded(sample) if sample.digest in right else sample
                for key, sample in samples.items()
            }
    by_index, by_record = list(faults), list(faults)
    if data is not None and known is not None:
        indexed = {key: sample for key, sample in samples.items() if key not in left_out}
        by_index += _differences(indexed, known)
    if data is not None and record is not None and own is not None:
        by_record = _file_differences(data, record) + by_record + _differences(samples, own)
        if not by_record and digest_of_bytes(data) != record.tar_digest:
            by_record.append(_Difference("", "changed bytes between the samples", "none"))
    problems = _blame(shard, record, known, right_index, by_index, by_record)
    return TarCheck(
        shard,
        problems,
        is_good=record is not None and not by_record,
        plan=record.plan if record else None,
        shard_row=sifted.without(copies).shard_row if sifted else None,
        quarantine=sifted.quarantine if sifted else None,
        samples=len(samples),
        frames=sum(sample.shape[0] for sample in samples.values() if sample.shape),
    )


def _blame(
    shard: str,
    record: Record | None,
    known: list[dict[str, Any]] | None,
    own: list[dict[str, Any]],
    by_index: list[_Difference],
    by_record: list[_Difference],
) -> list[Problem]:
    """Turns differences into problems of the tar, its record or the index."""
    if record is None:
        lost = Problem(record_name(shard), "", "missing or damaged", "the tar's record")
        return [lost, *(_of_tar(shard, item) for item in by_index)]
    if known is None or known == own:
        return [_of_tar(shard, item) for item in by_record]
    if not by_record:
        return [Problem(index.INDEX, d.key, d.in_table, d.in_tar) for d in by_index]
    if not by_index:
        name = record_name(shard)
        return [Problem(name, d.key, d.in_table, d.in_tar) for d in by_record]
    return [_of_tar(shard, item) for item in by_record]


def _of_tar(shard: str, item: _Difference) -> Problem:
    return Problem(shard, item.key, item.in_tar, item.in_table)


def _read(folder: Folder, shard: str) -> tuple[bytes | None, list[_Difference]]:
    if folder.size(shard) is None:
        return None, [_Difference("", "no such file", "a tar")]
    try:
        return folder.read(shard), []
    except OSError as error:
        return None, [_Difference("", f"cannot be read: {error.strerror or error}", "a tar")]


def _samples(data: bytes) -> tuple[dict[str, _Sample], list[_Difference]]:
    """Reads a tar member by member, as any program would."""
    members: list[tarfile.TarInfo] = []
    faults = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            members.extend(tar)
    except (tarfile.TarError, OSError, ValueError) as error:
        faults.append(_Difference("", f"no whole tar ({error})", "a whole tar"))
    samples: dict[str, _Sample] = {}
    place = 0
    while place < len(members):
        pair = members[place : place + 2]
        by_ending = {m.name.partition(".")[2]: m for m in pair if m.isfile()}
        key = pair[0].name.partition(".")[0]
        whole = by_ending.keys() == {"mp4", "json"} and pair[-1].name.partition(".")[0] == key
        if not whole:
            sides = f"{key}.mp4 and {key}.json side by side"
            faults.append(_Difference(key, f"{pair[0].name} alone", sides))
            place += 1
            continue
        if key in samples:
            faults.append(_Difference(key, "two samples of this key", "one"))
        video, text = by_ending["mp4"], by_ending["json"]
        content = data[video.offset_data : video.offset_data + video.size]
        side_car = _json(data[text.offset_data : text.offset_data + text.size])
        if side_car is None:
            faults.append(_Difference(key, "damaged JSON", "the sample's row"))
        samples[key] = _Sample(video.offset_data, content, digest_of_bytes(content), side_car or {})
        place += 2
    return samples, faults


def _json(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _decoded(sample: _Sample) -> _Sample:
    """Notes how many frames a sample has and their size, or why it cannot be decoded."""
    try:
        shape = call(decoded_shape, sample.data, limits=DEFAULT_LIMITS)
    except ChildFailed as error:
        shape = str(error)
    if isinstance(shape, str):
        return replace(sample, trouble=shape)
    return replace(sample, shape=shape)


def decoded_shape(data: bytes) -> tuple[int, int, int] | str:
    """Decodes all frames of a video; returns (frames, height, width), or what is wrong."""
    sizes, count = set(), 0
    try:
        with open_video(data) as container:
            stream = video_stream(container)
            stream.thread_count = 1  # tasks are the parallelism
            for frame in container.decode(stream):
                heartbeat()
                if frame.is_corrupt:
                    return f"frame {count} is corrupt"
                sizes.add((frame.height, frame.width))
                count += 1
    except (DecodeError, FFmpegError, ValueError) as error:
        return reason(error)
    if len(sizes) != 1:
        return f"frames of {len(sizes)} sizes"
    return (count, *sizes.pop())


def _differences(samples: dict[str, _Sample], rows: list[dict[str, Any]]) -> list[_Difference]:
    """Compares what lies in a tar with what a table says of it."""
    differences = []
    for row in rows:
        key, sample = row["key"], samples.get(row["key"])
        if sample is None:
            differences.append(_Difference(key, "no such sample", "a sample"))
            continue
        info = {"offset": sample.offset, "size": len(sample.data), "digest": sample.digest}
        for name, value in info.items():
            if value != row[name]:
                differences.append(_Difference(key, f"{name} {value}", f"{name} {row[name]}"))
        own = {name: value for name, value in row.items() if name not in _NOT_IN_JSON}
        for name in sorted(own.keys() | sample.side_car.keys()) if sample.side_car else ():
            in_tar, in_table = sample.side_car.get(name), own.get(name)
            if in_tar != in_table and (name not in info or info[name] != in_tar):
                text = f"{name} {in_table!r}"
                differences.append(_Difference(key, f"{name} {in_tar!r} in the JSON", text))
        shape = (row["frames"], row["height"], row["width"])
        if sample.trouble or (sample.shape is not None and sample.shape != shape):
            in_tar = sample.trouble or _shape(*sample.shape or ())
            differences.append(_Difference(key, in_tar, _shape(*shape)))
    unknown = samples.keys() - {row["key"] for row in rows}
    return differences + [_Difference(key, "a sample", "no such sample") for key in sorted(unknown)]


def _file_differences(data: bytes, record: Record) -> list[_Difference]:
    if len(data) == record.tar_bytes:
        return []
    return [_Difference("", f"{len(data)} bytes", f"{record.tar_bytes} bytes")]


def _shape(frames: int = 0, height: int = 0, width: int = 0) -> str:
    return f"{frames} frames of {width} x {height}"
