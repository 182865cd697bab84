"""One tar: transcode its pieces, write their samples, leave a record as the done mark."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from webdataset.writer import TarWriter

from data_prep.plan import Piece, ShardPlan
from data_prep.settings import PrepSettings
from data_prep.sources import Rejected
from data_prep.transcode import Segment, transcode
from dynamonet.shards.index import INDEX_SCHEMA, QUARANTINE_SCHEMA, RECORDS
from dynamonet.storage import Folder
from dynamonet.video.decode import DecodeError
from dynamonet.video.files import open_source, printable
from dynamonet.video.steady import output_rate


def build_shard(plan: ShardPlan, source: str, output: str, settings: PrepSettings) -> str:
    """Makes one tar and its record; returns the tar's name.

    The tar appears under its name when it is whole, the record after it. Bad videos become rows of
    the record's quarantine. Runs in a Ray task; safe to run again at any time.
    """
    videos, folder = Folder.at(source), Folder.at(output)
    rows: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    with folder.writing(plan.name) as path:
        with path.open("wb") as file:
            tar = TarWriter(file, user="", group="", mtime=0, encoder=False)
            for piece in plan.pieces:
                for item in _samples(piece, videos, settings):
                    if isinstance(item, Rejected):
                        rejected.append(item)
                    else:
                        row, data = item
                        tar.write({"__key__": row["key"], "mp4": data, "json": _side_car(row)})
                        rows.append(row)
            tar.close()
        size = path.stat().st_size
        _add_offsets(rows, path, plan.name)
    write_record(folder, plan, rows, rejected, size)
    return plan.name


def record_name(plan: ShardPlan) -> str:
    return f"{RECORDS}/{Path(plan.name).stem}.parquet"


def write_record(
    folder: Folder,
    plan: ShardPlan,
    rows: list[dict[str, Any]],
    rejected: list[Rejected],
    tar_bytes: int,
) -> None:
    """Writes what a tar holds; the record's presence says that the tar is done."""
    quarantine = [vars(item) for item in rejected]
    about = {"plan": plan.digest, "tar_bytes": tar_bytes, "quarantine": quarantine}
    schema = INDEX_SCHEMA.with_metadata({b"dynamonet": json.dumps(about).encode()})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="zstd")
    folder.write(record_name(plan), buffer.getvalue())


def read_record(folder: Folder, plan: ShardPlan) -> tuple[pa.Table, pa.Table, int] | None:
    """Returns (index rows, quarantine, tar bytes) if this very tar is done and still whole."""
    if folder.size(record_name(plan)) is None:
        return None
    table = pq.read_table(io.BytesIO(folder.read(record_name(plan))))
    about = json.loads((table.schema.metadata or {}).get(b"dynamonet", b"{}"))
    if about.get("plan") != plan.digest or folder.size(plan.name) != about.get("tar_bytes"):
        return None
    quarantine = pa.Table.from_pylist(about["quarantine"], QUARANTINE_SCHEMA)
    return table.replace_schema_metadata(None), quarantine, about["tar_bytes"]


def _samples(
    piece: Piece, videos: Folder, settings: PrepSettings
) -> Iterator[tuple[dict[str, Any], bytes] | Rejected]:
    """Yields (index row without its place, mp4) for each segment of a piece."""
    shown = printable(piece.source.path)
    try:
        with open_source(videos, piece.source) as container:
            segments = transcode(
                container,
                piece.stretch,
                output_rate(piece.facts.fps, settings.encode.max_fps),
                segment_seconds=settings.segment_seconds,
                min_seconds=settings.min_seconds,
                settings=settings.encode,
            )
            for number, item in enumerate(segments):
                if isinstance(item, Segment):
                    yield _row(piece, piece.key(number), item), item.data
                else:
                    yield Rejected(shown, item.reason, item.start_seconds, item.end_seconds)
    except (DecodeError, OSError) as error:
        yield Rejected(shown, str(error))


def _row(piece: Piece, key: str, segment: Segment) -> dict[str, Any]:
    label = piece.label
    return {
        "key": key,
        "size": len(segment.data),
        "digest": hashlib.blake2b(segment.data, digest_size=16).hexdigest(),
        "source": printable(piece.source.path),
        "source_digest": piece.facts.digest,
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
