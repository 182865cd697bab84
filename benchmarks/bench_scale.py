"""Sets of millions of samples, as far as no video is needed: planned, written, mapped, permuted.

make bench-scale             ROWS=n INDEX_ROWS=n make bench-scale for other numbers

The metadata are simulated: sources of ten seconds, 1280 x 720. Everything else is the real code.
Each part runs in a process of its own, whose peak memory is shown. Seconds are of the processor.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.report import Figure, in_own_process, peak_bytes, show, table
from data_prep.builder import Build
from data_prep.settings import FilterSettings, PrepSettings
from data_prep.shards.manifest import Inspected, Record, load_sources, save_sources, shard_name
from data_prep.shards.plan import ShardPlan
from data_prep.shards.tables import tables_of
from data_prep.sources.probe import VideoInfo
from dynamonet.shards import index
from dynamonet.shards.card import Card, read_card, write_card
from dynamonet.shards.mapped import map_index
from dynamonet.shards.order import Permutation, TrainingOrder
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.settings import LoaderSettings
from dynamonet.shards.shard_set import ShardSet
from dynamonet.storage import Folder
from dynamonet.video.files import Source

A_TAR = 1000  # samples of a simulated tar
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


def simulate_index(path: str, rows: int) -> tuple[dict[str, float], int, int]:
    """Writes card, tars' table and index of a set, whose tars hold a thousand samples each."""
    folder, seconds = Folder.at(path), {}
    folder.create()
    clock = timer(seconds)
    write_card(folder, Card(digest="0" * 32))
    names = [shard_name(number, -(-rows // A_TAR)) for number in range(-(-rows // A_TAR))]
    counts = [min(A_TAR, rows - first) for first in range(0, rows, A_TAR)]
    size = CLIP_BYTES + 2048
    tars = {
        "shard": names,
        "bytes": [count * size for count in counts],
        "samples": counts,
        "seconds": [10.0 * count for count in counts],
    }
    index.write_table(folder, index.SHARDS, pa.table(tars, index.SHARDS_SCHEMA))
    with pq.ParquetWriter(Path(path) / index.INDEX, index.INDEX_SCHEMA, compression="zstd") as out:
        for first in range(0, rows, 100 * A_TAR):
            numbers = np.arange(first, min(rows, first + 100 * A_TAR))
            digests = [f"{number:032x}" for number in numbers.tolist()]
            none = pa.nulls(len(numbers), pa.string())
            empty = pa.array([[]] * len(numbers), pa.list_(pa.string()))
            plain = {
                "start_seconds": 0.0, "end_seconds": 10.0, "frames": 300, "fps": 29.97,
                "width": 228, "height": 128, "size": CLIP_BYTES,
            } | dict.fromkeys(index.SCORES, 0.0)  # fmt: skip
            columns = {
                **{name: np.full(len(numbers), value) for name, value in plain.items()},
                "key": [f"{number:016x}_00000000" for number in numbers.tolist()],
                "shard": [names[number // A_TAR] for number in numbers.tolist()],
                "offset": 512 + numbers % A_TAR * size,
                "digest": digests,
                "source": [f"folder{n % 1000:04d}/video-{n:09d}.mp4" for n in numbers.tolist()],
                "source_digest": digests,
                "label": none.cast(pa.int32()),
                "class_name": none,
                "group": none,
                "splits": empty,
                "normalised": empty,
            }
            ordered = {name: columns[name] for name in index.INDEX_SCHEMA.names}
            out.write_table(pa.table(ordered, index.INDEX_SCHEMA))
    clock("(simulate the index)")
    return seconds, peak_bytes(), rows


def first_open(path: str, rows: int) -> tuple[dict[str, float], int, int]:
    """Checks and maps an index, as the first process of a machine does."""
    seconds: dict[str, float] = {}
    clock = timer(seconds)
    opened(path)
    clock("check the index and make the mapped file")
    return seconds, peak_bytes(), rows


def open_and_read(path: str, rows: int) -> tuple[dict[str, float], int, int]:
    """Does what every other process does; returns seconds by part, own memory, rows."""
    seconds: dict[str, float] = {}
    import_module("pandas")  # a library; Arrow loads it with its first array
    before = own_bytes()
    clock = timer(seconds)
    shards = opened(path)
    clock("open the mapped index")
    rows_wanted = shards.rows() - shards.drawn(0.05)
    reader = ClipReader(shards, rows_wanted, num_frames=17, loop_short=False)
    del rows_wanted
    clock("choose the rows: not held out, long enough")
    order = TrainingOrder(reader.rows, reader.plan(LoaderSettings(), 1, 0), 0, 10_000, 10_001)
    (step,) = order
    clock("the first batch of a resumed run")
    for request in step:
        reader.sets.find(request.row)
    clock("find its samples in the index")
    pickle.dumps(reader)
    clock("write the reader down for another process")
    return seconds, own_bytes() - before, rows


def own_bytes() -> int:
    """Returns the memory of this process that is no file's, which the kernel cannot take back."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


def permute(path: str, rows: int) -> tuple[dict[str, float], int, int]:
    """Computes the order of a whole epoch."""
    seconds: dict[str, float] = {}
    clock = timer(seconds)
    permutation = Permutation(rows, seed=0, epoch=0)
    for first in range(0, rows, 100_000):
        permutation(np.arange(first, min(rows, first + 100_000)))
    clock("a whole epoch's order")
    return seconds, peak_bytes(), rows


def opened(path: str) -> ShardSet:
    """Opens a set whose tars are not there."""
    folder = Folder.at(path)
    card, tars = read_card(folder), index.read_table(folder, index.SHARDS)
    return ShardSet(folder, card, map_index(folder, card, tars), tars)


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
    many = int(os.environ.get("INDEX_ROWS", "10000000"))
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as path:
        os.environ["DYNAMONET_CACHE"] = f"{path}/cache"
        made, write_peak, tars = in_own_process(plan_and_write, f"{path}/made", rows)
        sizes = {p.name: p.stat().st_size for p in sorted(Path(path).rglob("*.parquet"))}
        simulated, *_ = in_own_process(simulate_index, f"{path}/index", many)
        in_own_process(simulate_index, f"{path}/small", many // 10)
        in_own_process(first_open, f"{path}/small", many // 10)
        _, own_small, _ = in_own_process(open_and_read, f"{path}/small", many // 10)
        first, first_peak, _ = in_own_process(first_open, f"{path}/index", many)
        read, own, _ = in_own_process(open_and_read, f"{path}/index", many)
        order, *_ = in_own_process(permute, path, many)
        mapped = max(file.stat().st_size for file in Path(path).glob("cache/index/*.arrow"))
        a_row = (own - own_small) / (many - many // 10)
    times = table(f"{rows:,} samples in {tars:,} tars", "", "CPU seconds")
    for what, seconds in made.items():
        times.add_row(what, f"{seconds:.2f}")
    memory = table("Bytes", "", "MB", "bytes a sample")
    for name, size in [*sizes.items(), ("peak memory of stage 1's driver", write_peak)]:
        memory.add_row(name, f"{size / 1e6:,.1f}", f"{size / rows:,.0f}")
    opening = table(f"An index of {many:,} rows, in the processes of a training", "", "CPU seconds")
    for what, seconds in {**simulated, **first, **read, **order}.items():
        opening.add_row(what, f"{seconds:.2f}")
    shared = table("Its bytes", "", "MB", "bytes a sample")
    for name, size in (
        ("mapped file, one a machine", mapped),
        ("peak memory of the process that makes it", first_peak),
        ("each process's own, beyond Python and libraries", own),
        (f"the same with {many // 10:,} rows", own_small),
    ):
        shared.add_row(name, f"{size / 1e6:,.1f}", f"{size / many:,.1f}")
    driver = sum(seconds for what, seconds in made.items() if not what.startswith("("))
    figures = [
        Figure("driver_seconds_a_million", driver / rows * 1e6, 300, at_least=False),
        Figure("driver_gb_a_million", write_peak / 1e9 / rows * 1e6, 4, at_least=False),
        Figure("index_bytes_a_sample", sizes[index.INDEX] / rows, 200, at_least=False),
        Figure("open_seconds", read["open the mapped index"], 1, at_least=False),
        Figure("own_mb_at_100_million", (own + a_row * (1e8 - many)) / 1e6, 200, at_least=False),
    ]
    show([times, memory, opening, shared], figures)


if __name__ == "__main__":
    main()
