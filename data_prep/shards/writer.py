"""One tar: transcode its pieces, write their samples, leave a record as the done mark."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.reasons import Rejected, RejectReason
from data_prep.segments.transcode import Segment, transcode
from data_prep.settings import PrepSettings
from data_prep.shards.manifest import Record, read_record, write_record
from data_prep.shards.plan import Piece, ShardPlan
from dynamonet.child_process import ChildFailed, stream
from dynamonet.digest import digest_of_bytes, digest_of_stream
from dynamonet.storage import Folder
from dynamonet.video.constant_rate import output_rate
from dynamonet.video.decode import Box, DecodeError
from dynamonet.video.files import open_source, printable
from dynamonet.video.letterbox import find_content

Sample = tuple[dict[str, Any], bytes]  # (index row without its place, mp4)


def build_shard(plan: ShardPlan, source: str, output: str, settings: PrepSettings) -> str:
    """Makes one tar and its record; returns the tar's name.

    The tar appears under its name when it is whole, the record after it. Bad videos become rows of
    the record's quarantine. With `retry_quarantined`, what is good in a finished tar is taken over
    as it is. Runs in a Ray task; safe to run again at any time.
    """
    # here, because it brings torch, which the children that decode can do without
    from webdataset.writer import TarWriter

    videos, folder = Folder.at(source), Folder.at(output)
    record = done_record(folder, plan) if settings.retry_quarantined else None
    rows: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    with folder.writing(plan.name) as path:
        with path.open("wb") as file:
            tar = TarWriter(file, user="", group="", mtime=0, encoder=False)
            for piece in plan.pieces:
                kept = _kept(piece, folder, plan.name, record) if record else None
                for item in _guarded(piece, videos, settings) if kept is None else kept:
                    if isinstance(item, Rejected):
                        rejected.append(item)
                    else:
                        row, data = item
                        tar.write({"__key__": row["key"], "mp4": data, "json": _side_car(row)})
                        rows.append(row)
            tar.close()
        size = path.stat().st_size
        with path.open("rb") as file:
            digest = digest_of_stream(file)
        _add_offsets(rows, path, plan.name)
    write_record(
        folder,
        plan.name,
        rows,
        rejected,
        plan=plan.digest,
        tar_bytes=size,
        tar_digest=digest,
    )
    return plan.name


def done_record(folder: Folder, plan: ShardPlan) -> Record | None:
    """Returns the tar's record if this very tar is done and still has its size."""
    record = read_record(folder, plan.name)
    if record is None or record.plan != plan.digest:
        return None
    return record if folder.size(plan.name) == record.tar_bytes else None


def _kept(
    piece: Piece, folder: Folder, shard: str, record: Record
) -> list[Sample | Rejected] | None:
    """Returns what a finished tar holds of a piece; None if that is worth another try."""
    name, time_range = printable(piece.source.path), piece.time_range
    end = float("inf") if time_range.end is None else float(time_range.end)

    def inside(row: dict[str, Any]) -> bool:
        start = row["start_seconds"]
        return row["source"] == name and (start is None or float(time_range.start) <= start < end)

    bad = [Rejected.of(row) for row in record.quarantine.to_pylist() if inside(row)]
    if not all(item.kind.is_lasting for item in bad):
        return None
    items: list[Sample | Rejected] = [*bad]
    for row in filter(inside, record.rows.to_pylist()):
        data = folder.read_range(shard, row["offset"], row["size"])
        if digest_of_bytes(data) != row["digest"]:
            return None
        known = {key: value for key, value in row.items() if key not in ("shard", "offset")}
        items.append((known, data))
    return items or None


def _guarded(piece: Piece, videos: Folder, settings: PrepSettings) -> Iterator[Sample | Rejected]:
    """Transcodes a piece in a child; what its failure leaves undone is rejected."""
    shown, done = printable(piece.source.path), float(piece.time_range.start)
    try:
        for item in stream(_samples, piece, videos, settings, limits=settings.limits):
            end = item.end_seconds if isinstance(item, Rejected) else item[0]["end_seconds"]
            done = end or done
            yield item
    except ChildFailed as error:
        last = piece.info.seconds if piece.time_range.end is None else float(piece.time_range.end)
        whole = not done and piece.time_range.end is None
        where = (None, None) if whole else (done, max(done, last))
        yield Rejected(shown, RejectReason.UNREADABLE, str(error), *where)


def _samples(piece: Piece, videos: Folder, settings: PrepSettings) -> Iterator[Sample | Rejected]:
    """Transcodes a piece; yields a sample, or why there is none, for each of its segments."""
    shown = printable(piece.source.path)
    try:
        box = _content(piece, videos) if settings.encode.crop_letterbox else None
        rate = output_rate(piece.info.fps, settings.encode.max_fps)
        with open_source(videos, piece.source) as container:
            most = piece.most_segments
            items = transcode(
                container, piece.time_range, rate, settings, source=shown, box=box, most=most
            )
            for item in items:
                yield item if isinstance(item, Rejected) else (_row(piece, item), item.data)
    except (DecodeError, OSError) as error:
        yield Rejected(shown, RejectReason.UNREADABLE, str(error))


def _content(piece: Piece, videos: Folder) -> Box | None:
    """Returns the part of a source's frames inside black bars."""
    with open_source(videos, piece.source) as container:
        return find_content(container, piece.info.seconds)


def _row(piece: Piece, segment: Segment) -> dict[str, Any]:
    label = piece.label
    return {
        "key": piece.key(round(segment.start_seconds * segment.fps)),
        "size": len(segment.data),
        "digest": digest_of_bytes(segment.data),
        "source": printable(piece.source.path),
        "source_digest": piece.info.digest,
        "start_seconds": segment.start_seconds,
        "end_seconds": segment.end_seconds,
        "frames": segment.frames,
        "fps": float(segment.fps),
        "width": segment.width,
        "height": segment.height,
        "label": piece.class_index,
        "class_name": label.class_name if label else None,
        "group": label.group if label else None,
        "splits": list(label.splits) if label else [],
        **segment.scores,
        "normalised": list(segment.normalised),
    }


def _side_car(row: dict[str, Any]) -> bytes:
    """Returns the sample's JSON for programs that read the tar without the index."""
    return json.dumps(row, sort_keys=True).encode()


def _add_offsets(rows: list[dict[str, Any]], path: Path, shard: str) -> None:
    """Reads the finished tar back and notes where each mp4 lies."""
    with tarfile.open(path, "r:") as tar:
        places = {Path(m.name).stem: m.offset_data for m in tar if m.name.endswith(".mp4")}
    for row in rows:
        row["shard"], row["offset"] = shard, places[row["key"]]
