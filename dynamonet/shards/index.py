"""The tables beside the tars: Parquet index, shards, quarantine, copies.

<set>/
  card.json             format version, settings, counts, classes, digest of the content
  index.parquet         one row a sample: where it lies and what it is
  shards.parquet        one row a tar: bytes, samples, seconds
  quarantine.parquet    one row a video, or time range of one, that was not taken, with its reason
  duplicates.parquet    one row a segment that is a copy of another, here or in an excluded set
  report.html           what is in the set, with pictures, for a reader
  shard-00000-of-00008.tar ...   plain WebDataset: <key>.mp4 + <key>.json
  records/              one record a tar, its done mark, and a copy of the card; for stage 1
"""

from __future__ import annotations

import hashlib
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from dynamonet.errors import UserError
from dynamonet.shards.card import repair_command
from dynamonet.storage import Folder

INDEX, SHARDS, QUARANTINE = "index.parquet", "shards.parquet", "quarantine.parquet"
DUPLICATES, REPORT = "duplicates.parquet", "report.html"

SCORES = (  # of a segment, all from 0 to 1
    "brightness",  # mean; 0 = black, 1 = white
    "black_share",  # share of black frames
    "static_share",  # share of quarters of a second in which nothing moves
    "slideshow",  # static_share where pictures jump in between, else 0
    "border_share",  # share of the picture in black bars on opposite sides
    "motion",  # mean change of brightness in a quarter of a second
)
INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), False),
        pa.field("shard", pa.string(), False),  # file name of the tar
        pa.field("offset", pa.int64(), False),  # of the mp4's first byte in the tar
        pa.field("size", pa.int64(), False),  # of the mp4 in bytes
        pa.field("digest", pa.string(), False),  # BLAKE2b-128 of the mp4
        pa.field("source", pa.string(), False),  # path below the source folder
        pa.field("source_digest", pa.string(), False),  # BLAKE2b-128 of the source file
        pa.field("start_seconds", pa.float64(), False),  # in the source, [start, end)
        pa.field("end_seconds", pa.float64(), False),
        pa.field("frames", pa.int32(), False),
        pa.field("fps", pa.float64(), False),
        pa.field("width", pa.int32(), False),
        pa.field("height", pa.int32(), False),
        pa.field("label", pa.int32(), True),  # place in the card's class list
        pa.field("class_name", pa.string(), True),
        pa.field("group", pa.string(), True),  # samples that must share a side of any split
        pa.field("splits", pa.list_(pa.string()), False),  # split k stands at k - 1; "" = unused
        *(pa.field(name, pa.float64(), False) for name in SCORES),
        pa.field("normalised", pa.list_(pa.string()), False),  # what was changed in the frames
    ]
)
SHARDS_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), False),
        pa.field("bytes", pa.int64(), False),
        pa.field("samples", pa.int32(), False),
        pa.field("seconds", pa.float64(), False),
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), False),
        pa.field("kind", pa.string(), False),  # data_prep.reasons.RejectReason
        pa.field("reason", pa.string(), False),
        pa.field("start_seconds", pa.float64(), True),  # null = the whole video
        pa.field("end_seconds", pa.float64(), True),
        pa.field("score", pa.float64(), True),  # of the filter that left it out
    ]
)
DUPLICATES_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), False),  # of the copy
        pa.field("source", pa.string(), False),
        pa.field("start_seconds", pa.float64(), False),
        pa.field("end_seconds", pa.float64(), False),
        pa.field("of_key", pa.string(), False),  # of what it is a copy of
        pa.field("of_source", pa.string(), False),
        pa.field("of_set", pa.string(), True),  # folder of the excluded set; null = this one
        pa.field("still_bits", pa.float64(), False),  # mean distance of the pictures, of 64 bits
        pa.field("motion_bits", pa.float64(), True),  # and of their motion; null = nothing moves
        pa.field("left_out", pa.bool_(), False),  # it is in its tar, but not in the index
    ]
)


def read_table(folder: Folder, name: str) -> pa.Table:
    """Reads a Parquet table of the set.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return pq.read_table(io.BytesIO(folder.read(name)))
    except FileNotFoundError:
        raise damaged(folder, name, "missing") from None
    except (pa.ArrowException, OSError) as error:  # a damaged page is an OSError
        raise damaged(folder, name, f"damaged: {error}") from None


def damaged(folder: Folder, name: str, state: str) -> UserError:
    """Returns the error for a file of the set, with the command that repairs it."""
    return UserError(
        f"{folder.path}/{name}: {state}", f"Repair the set with\n  {repair_command(folder)}"
    )


def write_table(folder: Folder, name: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    folder.write(name, buffer.getvalue())


def by_tar(table: pa.Table) -> dict[str, pa.Table]:
    """Returns the rows of an index by the name of their tar, in the order in which they lie."""
    order = table.sort_by([("shard", "ascending"), ("offset", "ascending")])
    names = order["shard"].to_pylist()
    starts = [i for i, name in enumerate(names) if not i or names[i - 1] != name]
    ends = [*starts, len(names)][1:]
    return {
        names[start]: order.slice(start, end - start)
        for start, end in zip(starts, ends, strict=True)
    }


def content_digest(table: pa.Table) -> str:
    """Returns the digest of a set's content: what every sample is, not in which tar it lies."""
    columns = [name for name in INDEX_SCHEMA.names if name not in ("shard", "offset")]
    content = table.select(columns).sort_by("key")
    digest = hashlib.blake2b(digest_size=16)
    for batch in content.to_batches(max_chunksize=10_000):  # as Python objects, rows are large
        for row in batch.to_pylist():
            digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()
