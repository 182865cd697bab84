"""A set of a million samples, as far as no video is needed: planned, written, opened, permuted.

make bench-scale             ROWS=n make bench-scale for another number

The metadata are simulated: sources of ten seconds, 1280 x 720. Everything else is the real code.
Each part runs in a process of its own, whose peak memory is shown. Seconds are of the processor.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.report import Figure, in_own_process, peak_bytes, show, table
from data_prep.builder import Build
from data_prep.settings import FilterSettings, PrepSettings
from data_prep.shards.manifest import Inspected, Record, load_sources, save_sources
from data_prep.shards.plan import ShardPlan
from data_prep.shards.tables import tables_of
from data_prep.sources.probe import VideoInfo
from dynamonet.shards import index
from dynamonet.shards.order import Permutation
from dynamonet.storage import Folder
from dynamonet.video.files import Source

CLIP_BYTES = 200_000


def inspected(rows: int) -> list[Inspected]:
    """Returns simulated sources of one segment each."""
    return [
        Inspected(
            Source(f"folder{number % 1000:04d}/video-{number:09d}.mp4", 3_000_000, number),
            VideoInfo(digest_of(number), 10.0, Fraction(30000, 1001), 1280, 720),
            None,
        )
        for number in range(rows)
    ]


def digest_of(number: int) -> str:
    return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=16).hexdigest()


def record_of(plan: ShardPlan) -> Record:
    rows: list[dict[str, Any]] = [
        {
            "key": piece.key(0),
            "shard": plan.name,
            "offset": 512 + place * (CLIP_BYTES + 2048),
            "size": CLIP_BYTES,
            "digest": digest_of(int(piece.info.digest[:8], 16)),
            "source": piece.source.path,
            "source_digest": piece.info.digest,
            "start_seconds": 0.0,
            "end_seconds": 10.0,
            "frames": 300,
            "fps": 29.97,
            "width": 228,
            "height": 128,
            "splits": [],
            "normalised": [],
            **dict.fromkeys(index.SCORES, 0.0),
        }
        for place, piece in enumerate(plan.pieces)
    ]
    nothing = index.QUARANTINE_SCHEMA.empty_table()
    size = len(rows) * (CLIP_BYTES + 2048)
    table_of = pa.Table.from_pylist(rows, index.INDEX_SCHEMA)
    pieces = [(piece.digest, 1, 0) for piece in plan.pieces]
    return Record(table_of, nothing, pieces, plan.digest, size, "0" * 32)


def plan_and_write(path: str, rows: int) -> tuple[dict[str, float], int, int]:
    """Does what the driver of stage 1 does; returns seconds by part, peak memory, tars."""
    folder, seconds = Folder.at(path), {}
    folder.create()
    found = inspected(rows)
    clock = timer(seconds)
    save_sources(folder, found)
    clock("save what the sources are")
    load_sources(folder)
    clock("load it, in the next run")
    plans = Build.of(PrepSettings(), lambda *_: None).plan(found, None)
    clock("plan the tars")
    records = {plan.name: record_of(plan) for plan in plans}
    clock("(simulate their records)")
    tables = tables_of(records, found, index.DUPLICATES_SCHEMA.empty_table(), FilterSettings())
    clock("put the records together")
    index.content_digest(tables.index)
    clock("digest of the content")
    tables.write(folder)
    clock("write index and tables")
    return seconds, peak_bytes(), len(plans)


def open_and_permute(path: str, rows: int) -> tuple[dict[str, float], int, int]:
    """Does what a training process does; returns seconds by part, peak memory, rows."""
    folder, seconds = Folder.at(path), {}
    clock = timer(seconds)
    found = index.read_table(folder, index.INDEX)
    clock("open the index")
    permutation = Permutation(found.num_rows, seed=0, epoch=0)
    step = permutation(np.arange(256))
    clock("the first batch of an epoch, anywhere in it")
    for first in range(0, rows, 100_000):
        permutation(np.arange(first, min(rows, first + 100_000)))
    clock("a whole epoch's order")
    return seconds, peak_bytes(), len(step)


def timer(seconds: dict[str, float]) -> Callable[[str], None]:
    """Returns a function that notes the seconds since it was last called."""
    last = [time.process_time()]

    def clock(what: str) -> None:
        now = time.process_time()
        seconds[what] = now - last[0]
        last[0] = now

    return clock


def main() -> None:
    """Prints the tables and the figures."""
    rows = int(os.environ.get("ROWS", "1000000"))
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as path:
        made, write_peak, tars = in_own_process(plan_and_write, path, rows)
        read, read_peak, _ = in_own_process(open_and_permute, path, rows)
        sizes = {p.name: p.stat().st_size for p in sorted(Path(path).rglob("*.parquet"))}
        groups = pq.read_metadata(Path(path) / index.INDEX).num_row_groups
    times = table(f"{rows:,} samples in {tars:,} tars", "", "CPU seconds")
    for what, seconds in {**made, **read}.items():
        times.add_row(what, f"{seconds:.2f}")
    memory = table("Bytes", "", "MB", "bytes a sample")
    for name, size in listed(sizes, write_peak, read_peak):
        memory.add_row(name, f"{size / 1e6:,.1f}", f"{size / rows:,.0f}")
    memory.caption = f"the index has {groups} row groups"
    show([times, memory], figures(made, read, sizes, write_peak, read_peak, rows))


def listed(sizes: dict[str, int], write_peak: int, read_peak: int) -> Iterator[tuple[str, int]]:
    yield from sizes.items()
    yield "peak memory of stage 1's driver", write_peak
    yield "peak memory of a training process, index open", read_peak


def figures(
    made: dict[str, float],
    read: dict[str, float],
    sizes: dict[str, int],
    write_peak: int,
    read_peak: int,
    rows: int,
) -> list[Figure]:
    millions = rows / 1e6
    driver = sum(seconds for what, seconds in made.items() if not what.startswith("("))
    return [
        Figure("driver_seconds_a_million", driver / millions, 300, at_least=False),
        Figure("driver_gb_a_million", write_peak / 1e9 / millions, 4, at_least=False),
        Figure("open_seconds_a_million", read["open the index"] / millions, 5, at_least=False),
        Figure("reader_gb_a_million", read_peak / 1e9 / millions, 1, at_least=False),
        Figure("index_bytes_a_sample", sizes[index.INDEX] / rows, 200, at_least=False),
    ]


if __name__ == "__main__":
    main()
