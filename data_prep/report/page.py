"""A page about a set: `report.html`, one file that opens anywhere, with pictures of the segments.

What it shows is read from the tables, the card and a few samples; names of files are escaped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from data_prep.reasons import Rejected
from data_prep.shards.manifest import read_record
from dynamonet.html import jpeg_uri, render
from dynamonet.shards import index
from dynamonet.shards.shard_set import ShardSet
from dynamonet.storage import Folder
from dynamonet.video.decode import DecodeError, decode_frames

SHEET, PAIRS, EXAMPLES = 24, 12, 5  # random segments, copies, videos named for each reason
BARS, FRAMES, HEIGHT_PX = 24, 3, 96
LABELLED = ("start_seconds", "label", "offset")  # numbers that say nothing about a set
TITLES = {
    "seconds": "Length in seconds",
    "short_side": "Shorter side in pixels",
    "fps": "Frames a second",
    "size": "Kilobytes a segment",
}


@dataclass(frozen=True)
class Histogram:
    """Counts of a column in bars of equal width."""

    title: str
    least: str
    most: str
    median: str
    bars: list[tuple[str, int, float]]  # (from - to, count, height in per cent)


def write_set_page(folder: Folder) -> str:
    """Writes the page of a set into it; returns the page."""
    shards = ShardSet.open(folder.path)
    quarantine = index.read_table(folder, index.QUARANTINE).to_pylist()
    copies = index.read_table(folder, index.DUPLICATES)
    text = render(
        "data_prep.report",
        "page.html.j2",
        name=folder.path.rsplit("/", 1)[-1],
        path=folder.path,
        card=shards.card,
        info=_facts(shards),
        lost=_lost(quarantine),
        histograms=[_histogram(*column) for column in _columns(shards.table)],
        classes=_classes(shards),
        parts=_parts(shards),
        num_copies=copies.num_rows,
        copies=_copies(folder, shards, copies),
        sheet=_sheet(folder, shards),
        tars=_tars(shards.tars),
    )
    folder.write(index.REPORT, text.encode())
    return text


def _facts(shards: ShardSet) -> list[tuple[str, str]]:
    counts = shards.card.counts
    info = {
        "videos taken": f"{counts.videos_taken:,} of {counts.videos_found:,}",
        "segments": f"{counts.samples:,}",
        "in segments": _length(counts.seconds),
        "declared by the sources": _length(counts.seconds_declared),
        "in quarantine": _length(counts.seconds_quarantined),
        "not asked for": _length(counts.seconds_not_asked_for),
        "size": f"{counts.bytes / 1e6:,.1f} MB in {counts.shards:,} tars",
        "near duplicates": f"{counts.near_duplicates:,}",
        "copies of excluded sets": f"{counts.in_excluded_sets:,}",
    }
    if shards.classes:
        info |= {
            "classes": f"{len(shards.classes):,}",
            "splits": f"{shards.num_splits}",
            "listed, but not found": f"{counts.listed_but_missing:,}",
            "found, but not listed": f"{counts.found_but_unlisted:,}",
        }
    return list(info.items())


def _length(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 7200 else f"{seconds / 60:,.1f} min"


def _lost(quarantine: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns each kind of reason with its count and examples, the most frequent first."""
    groups: dict[str, list[Rejected]] = {}
    for row in quarantine:
        item = Rejected.of(row)
        groups.setdefault(item.group, []).append(item)
    return [
        {"kind": kind, "count": len(items), "examples": items[:EXAMPLES]}
        for kind, items in sorted(groups.items(), key=lambda group: -len(group[1]))
    ]


def _columns(table: pa.Table) -> list[tuple[str, np.ndarray]]:
    """Returns (title, values) of what is worth a histogram, every column of scores included."""
    seconds = pc.call_function("subtract", [table["end_seconds"], table["start_seconds"]])
    sides = np.minimum(table["width"].to_numpy(), table["height"].to_numpy())
    columns = {
        "seconds": seconds.to_numpy(),
        "short_side": sides,
        "fps": table["fps"].to_numpy(),
        "size": table["size"].to_numpy() / 1e3,
    }
    known = {*columns, *LABELLED, "end_seconds", "frames", "width", "height"}
    for field in table.schema:
        if field.name not in known and (
            pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
        ):
            columns[field.name] = table[field.name].drop_null().to_numpy()
    titled = [(TITLES.get(name, name), np.asarray(v, float)) for name, v in columns.items()]
    return [(title, values[np.isfinite(values)]) for title, values in titled]


def _histogram(title: str, values: np.ndarray) -> Histogram:
    if not len(values):
        return Histogram(title, "-", "-", "-", [])
    counts, edges = np.histogram(values, BARS)
    bars = [
        (f"{low:.4g} - {high:.4g}", int(count), 100 * float(count) / counts.max())
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    least, median, most = (f"{x:.4g}" for x in np.quantile(values, [0, 0.5, 1]))
    return Histogram(title, least, most, median, bars)


def _classes(shards: ShardSet) -> list[tuple[str, int, float]]:
    """Returns (class, segments, width of its bar in per cent) in label order."""
    counts = Counter(shards.table["class_name"].to_pylist())
    most = max([counts[name] for name in shards.classes] or [1]) or 1
    return [(name, counts[name], 100 * counts[name] / most) for name in shards.classes]


def _parts(shards: ShardSet) -> list[tuple[int, dict[str, int]]]:
    """Returns the segments of each part of each split."""
    names = ("train", "val", "test", "")
    splits = shards.table["splits"].to_pylist()
    rows = []
    for number in range(shards.num_splits):
        counts = Counter(parts[number] for parts in splits if parts)
        rows.append((number + 1, {name or "not used": counts[name] for name in names}))
    return rows


def _copies(folder: Folder, shards: ShardSet, copies: pa.Table) -> list[dict[str, Any]]:
    """Returns the first copies with pictures of both; a copy that was left out has its tar's."""
    wanted = copies.slice(0, PAIRS).to_pylist()
    keys = {row["key"] for row in wanted} | {row["of_key"] for row in wanted if not row["of_set"]}
    rows = {row["key"]: row for row in _records(folder, shards, keys)}
    for path in {row["of_set"] for row in wanted if row["of_set"]}:
        other = ShardSet.open(path)
        for row in _rows_of(other.table, {r["of_key"] for r in wanted if r["of_set"] == path}):
            rows[f"{path} {row['key']}"] = {**row, "folder": path}
    shown = []
    for row in wanted:
        other = f"{row['of_set']} {row['of_key']}" if row["of_set"] else row["of_key"]
        both = [_strip(folder, rows.get(key)) for key in (row["key"], other)]
        shown.append({**row, "strip": both[0], "of_strip": both[1]})
    return shown


def _records(folder: Folder, shards: ShardSet, keys: set[str]) -> list[dict[str, Any]]:
    """Returns the rows of samples, those that the index leaves out included."""
    rows = _rows_of(shards.table, keys)
    missing = keys - {row["key"] for row in rows}
    for name in shards.tars["shard"].to_pylist() if missing else ():
        record = read_record(folder, name)
        rows += _rows_of(record.rows, missing) if record else []
    return rows


def _rows_of(table: pa.Table, keys: set[str]) -> list[dict[str, Any]]:
    wanted = pc.call_function(
        "is_in", [table["key"]], pc.SetLookupOptions(pa.array(sorted(keys), pa.string()))
    )
    return table.filter(wanted).to_pylist()


def _sheet(folder: Folder, shards: ShardSet) -> list[dict[str, Any]]:
    """Returns random segments with their pictures; the same for the same set."""
    draw = np.random.default_rng(int(shards.digest[:8], 16))
    chosen = np.sort(draw.permutation(len(shards))[:SHEET])
    rows = shards.table.take(pa.array(chosen)).to_pylist()
    return [{**row, "strip": _strip(folder, row)} for row in rows]


def _strip(folder: Folder, row: dict[str, Any] | None) -> str:
    """Returns a few frames of a segment side by side as a data URI; "" if it cannot be read."""
    if row is None:
        return ""
    place = Folder.at(row["folder"]) if "folder" in row else folder
    try:
        data = place.read_range(row["shard"], row["offset"], row["size"])
        return jpeg_uri(Image.fromarray(_pictures(data, row["frames"])))
    except (DecodeError, OSError):
        return ""


def _pictures(data: bytes, frames: int) -> np.ndarray:
    """Returns FRAMES pictures of a segment side by side (H, W, 3)."""
    wanted = [round((frames - 1) * (2 * n + 1) / (2 * FRAMES)) for n in range(FRAMES)]
    pictures = []
    for frame in decode_frames(data, wanted):
        width = max(2, round(frame.width * HEIGHT_PX / frame.height / 2) * 2)
        pictures.append(frame.reformat(width, HEIGHT_PX, "rgb24").to_ndarray())
    return np.concatenate(pictures, axis=1)


def _tars(tars: pa.Table) -> list[Histogram]:
    columns = {
        "Megabytes a tar": tars["bytes"].to_numpy() / 1e6,
        "Segments a tar": tars["samples"].to_numpy(),
    }
    return [_histogram(title, np.asarray(values, float)) for title, values in columns.items()]
