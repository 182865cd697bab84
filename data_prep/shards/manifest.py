"""What stage 1 keeps for itself in `records/`: one record a tar, the sources, settings, the card.

records/
  shard-00000-of-00001.parquet   a tar's rows of the index; its presence is the tar's done mark
  sources.parquet         every video found: header, hash, or why it was left out
  settings.json           the settings that decide what the tars hold
  card.json               a copy of the card
  fingerprints/           fingerprints of each tar's segments

Everything beside the tars can be made again from here, without the videos.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.reasons import Rejected, RejectReason
from data_prep.sources.probe import VideoInfo
from dynamonet.shards import index
from dynamonet.shards.card import RECORDS
from dynamonet.storage import Folder
from dynamonet.video.files import Source, printable

SOURCES = f"{RECORDS}/sources.parquet"  # so that files are read once
SETTINGS = f"{RECORDS}/settings.json"
_ROWS = 10_000  # that are Python objects at a time
SOURCES_SCHEMA = pa.schema(
    [
        pa.field("path", pa.binary(), False),  # binary: names need not be UTF-8
        pa.field("size", pa.int64(), False),
        pa.field("mtime_ns", pa.int64(), False),
        pa.field("digest", pa.string(), True),  # null = no usable header
        pa.field("seconds", pa.float64(), True),
        pa.field("fps", pa.string(), True),  # a ratio
        pa.field("width", pa.int32(), True),
        pa.field("height", pa.int32(), True),
        pa.field("declared_seconds", pa.float64(), True),
        pa.field("steady", pa.bool_(), True),
        pa.field("trouble", pa.string(), True),
        pa.field("kind", pa.string(), True),  # of the reason why it is left out; null = it is taken
        pa.field("reason", pa.string(), True),
    ]
)


@dataclass(frozen=True, slots=True)
class Inspected:
    """A source and what reading its header, and the lists, said."""

    source: Source
    info: VideoInfo | None  # None = no usable header
    rejected: Rejected | None = None  # why it is left out as a whole; None = it is taken


@dataclass(frozen=True)
class Record:
    """What one tar holds."""

    rows: pa.Table  # INDEX_SCHEMA; of each piece together, as in the next two
    quarantine: pa.Table  # QUARANTINE_SCHEMA
    pieces: list[tuple[str, int, int]]  # (digest, rows, rows in quarantine)
    plan: str  # digest of everything that decides the tar's bytes
    tar_bytes: int
    tar_digest: str  # BLAKE2b-128 of the tar

    def without(self, keys: set[str]) -> Record:
        """Returns the record less some of its samples, which are left out of the index."""
        if not keys:
            return self
        kept = [key not in keys for key in self.rows["key"].to_pylist()]
        return replace(self, rows=self.rows.filter(pa.array(kept, pa.bool_())))

    def by_piece(self) -> Iterator[tuple[str, list[dict[str, Any]], list[Rejected]]]:
        """Yields the digest of each piece of a whole record, with its rows."""
        row = lost = 0
        for digest, num_rows, num_lost in self.pieces:
            rows = self.rows.slice(row, num_rows).to_pylist()
            rejected = self.quarantine.slice(lost, num_lost).to_pylist()
            yield digest, rows, [Rejected.of(item) for item in rejected]
            row, lost = row + num_rows, lost + num_lost

    @property
    def seconds(self) -> float:
        return sum(row["end_seconds"] - row["start_seconds"] for row in self.rows.to_pylist())

    @property
    def shard_row(self) -> dict[str, Any]:
        """Row of the shards table, less the tar's name."""
        return {"bytes": self.tar_bytes, "samples": self.rows.num_rows, "seconds": self.seconds}


def record_name(shard: str) -> str:
    """Returns the name of a tar's record."""
    return f"{RECORDS}/{PurePosixPath(shard).stem}.parquet"


def shard_name(number: int, total: int) -> str:
    """Returns the name of one of `total` tars."""
    return f"shard-{number:05d}-of-{total:05d}.tar"


def shard_place(name: str) -> tuple[int, int] | None:
    """Returns (number, total) from a tar's or record's name; None for other files' names."""
    match = re.fullmatch(r"shard-(\d{5,})-of-(\d{5,})\.(tar|parquet)", PurePosixPath(name).name)
    return (int(match[1]), int(match[2])) if match else None


def write_record(
    folder: Folder,
    shard: str,
    rows: list[dict[str, Any]],
    rejected: list[Rejected],
    *,
    plan: str,
    pieces: list[tuple[str, int, int]],
    tar_bytes: int,
    tar_digest: str,
) -> None:
    """Writes what a tar holds; the record's presence says that the tar is done."""
    quarantine = [vars(item) for item in rejected]
    about = {"plan": plan, "pieces": pieces, "tar_bytes": tar_bytes, "tar_digest": tar_digest}
    about["quarantine"] = quarantine
    schema = index.INDEX_SCHEMA.with_metadata({b"dynamonet": json.dumps(about).encode()})
    index.write_table(folder, record_name(shard), pa.Table.from_pylist(rows, schema))


def read_record(folder: Folder, shard: str) -> Record | None:
    """Reads a tar's record; None where it is missing or damaged: then the tar is not done."""
    if folder.size(record_name(shard)) is None:
        return None
    try:
        table = pq.read_table(io.BytesIO(folder.read(record_name(shard))))
        about = json.loads((table.schema.metadata or {})[b"dynamonet"])
        quarantine = pa.Table.from_pylist(about["quarantine"], index.QUARANTINE_SCHEMA)
        rows = table.replace_schema_metadata(None)
        pieces = [(digest, num_rows, num_lost) for digest, num_rows, num_lost in about["pieces"]]
        parts = (about["plan"], about["tar_bytes"], about["tar_digest"])
        record = Record(rows, quarantine, pieces, *parts)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None
    return record if rows.schema.equals(index.INDEX_SCHEMA) else None


def save_sources(output: Folder, inspected: list[Inspected]) -> None:
    """Writes what is known of the sources, unless it stands there already."""
    ordered = sorted(inspected, key=lambda item: item.source.path)
    parts = [
        pa.Table.from_pylist([_row(item) for item in ordered[i : i + _ROWS]], SOURCES_SCHEMA)
        for i in range(0, len(ordered), _ROWS)
    ]
    table = pa.concat_tables(parts)
    before = _sources_table(output)
    if before is None or not before.equals(table):
        index.write_table(output, SOURCES, table)


def load_sources(output: Folder) -> list[Inspected] | None:
    """Returns what is known of the sources; None where that is missing or damaged."""
    table = _sources_table(output)
    if table is None:
        return None
    batches = table.to_batches(max_chunksize=_ROWS)
    return [_inspected(row) for batch in batches for row in batch.to_pylist()]


def _sources_table(output: Folder) -> pa.Table | None:
    if output.size(SOURCES) is None:
        return None
    try:
        table = pq.read_table(io.BytesIO(output.read(SOURCES)))
    except (pa.ArrowException, OSError):
        return None
    return table if table.schema.equals(SOURCES_SCHEMA) else None


def _row(item: Inspected) -> dict[str, Any]:
    row = {
        "path": item.source.path.encode("utf-8", "surrogateescape"),
        "size": item.source.size,
        "mtime_ns": item.source.mtime_ns,
    }
    if item.rejected:
        row |= {"kind": item.rejected.kind, "reason": item.rejected.reason}
    if item.info:
        row |= {field.name: getattr(item.info, field.name) for field in fields(item.info)}
        row["fps"] = str(item.info.fps)
    return row


def _inspected(row: dict[str, Any]) -> Inspected:
    path = row["path"].decode("utf-8", "surrogateescape")
    info = None
    if row["digest"] is not None:
        info = VideoInfo(**{f.name: row[f.name] for f in fields(VideoInfo)})
        info = replace(info, fps=Fraction(row["fps"]))
    rejected = None
    if row["kind"] is not None:
        rejected = Rejected(printable(path), RejectReason(row["kind"]), row["reason"])
    return Inspected(Source(path, row["size"], row["mtime_ns"]), info, rejected)
