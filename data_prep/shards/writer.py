"""One tar, put together from finished pieces, with a record as the done mark."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from data_prep.reasons import Rejected
from data_prep.segments.transcode import Segment
from data_prep.settings import PrepSettings
from data_prep.shards.manifest import Record, read_record, write_record
from data_prep.shards.pieces import Item, OlderTars, encoded
from data_prep.shards.plan import Piece, ShardPlan
from dynamonet.digest import digest_of_bytes, digest_of_stream
from dynamonet.storage import Folder
from dynamonet.video.files import printable


def build_shard(
    plan: ShardPlan,
    source: str,
    output: str,
    settings: PrepSettings,
    totals: Sequence[int] = (),
    given: Mapping[int, Iterable[list[Item]]] | None = None,
) -> str:
    """Makes one tar and its record; returns the tar's name.

    The tar appears under its name when it is whole, the record after it. Bad videos become rows of
    the record's quarantine. Runs in a Ray task; safe to run again at any time.

    Args:
        totals: Numbers of tars that the set has been divided into: what is finished in one of
            those tars is taken over as it is.
        given: What pieces gave, by their place in the plan. What is in neither is encoded here.
    """
    # here, because it brings torch, which the children that decode can do without
    from webdataset.writer import TarWriter

    videos, folder = Folder.at(source), Folder.at(output)
    older = OlderTars(folder, plan, totals, settings)
    rows: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    pieces: list[tuple[str, int, int]] = []
    with closing(older), folder.writing(plan.name) as path:
        with path.open("wb") as file:
            tar = TarWriter(file, user="", group="", mtime=0, encoder=False)
            for place, piece in enumerate(plan.pieces):
                begin = len(rows), len(rejected)
                for item in _items(piece, (given or {}).get(place), older, videos, settings):
                    if isinstance(item, Rejected):
                        rejected.append(item)
                    else:
                        row = _row(piece, item)
                        tar.write({"__key__": row["key"], "mp4": item.data, "json": _side_car(row)})
                        rows.append(row)
                pieces.append((piece.digest, len(rows) - begin[0], len(rejected) - begin[1]))
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
        pieces=pieces,
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


def _items(
    piece: Piece,
    given: Iterable[list[Item]] | None,
    older: OlderTars,
    videos: Folder,
    settings: PrepSettings,
) -> Iterable[Item]:
    if given is not None:
        return (item for chunk in given for item in chunk)
    kept = older.take(piece) if piece in older else None
    return encoded(piece, videos, settings) if kept is None else kept


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
        "fps": segment.fps,
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
