"""The rows of an index, mapped: the processes of a machine share one file, and none reads it whole.

index.parquet -> checked row by row -> <cache>/index/<which>.arrow -> mapped by every process

The file is made where the index is first wanted on a machine, never taken from the set's folder:
what is mapped has been checked here. Source of the layout: Arrow's IPC file format.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs as pafs

from dynamonet.shards.cache import cache_folder, locked
from dynamonet.shards.card import Card
from dynamonet.shards.index import INDEX, INDEX_SCHEMA, SCORES, damaged
from dynamonet.shards.rows import BLOCK, RowSet
from dynamonet.storage import Folder, atomic_file

PART_ROWS = 512 * BLOCK  # of a record batch
DRAW = pa.field("draw", pa.uint32(), False)  # of the source's name; decides what is held out
LATER = {*SCORES, "normalised"}  # columns that sets of version 1 lack
MAX_SIDE, MAX_FPS = 16_384, 1_000.0
KEPT_DAYS = 30  # after its last use
_LAYOUT = 1  # changes with what is in the file


class Row(NamedTuple):
    """What a reader must know of a sample."""

    key: str
    shard: str
    offset: int
    size: int
    digest: str
    frames: int
    fps: float
    width: int
    height: int
    label: int | None


class MappedIndex:
    """The rows of a set; picklable, mapped again wherever it goes."""

    def __init__(self, file: Path) -> None:
        self.file = file
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        self.schema: pa.Schema = reader.schema
        self._parts = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._columns = [self.schema.get_field_index(name) for name in Row._fields]

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedIndex, (self.file,)

    def __len__(self) -> int:
        return max(0, len(self._parts) - 1) * PART_ROWS + len(self._parts[-1])

    def __getitem__(self, number: int) -> Row:
        part, place = self._parts[number // PART_ROWS], number % PART_ROWS
        return Row(*[part.column(column)[place].as_py() for column in self._columns])

    @cached_property
    def table(self) -> pa.Table:
        """All columns of the index; what is not asked of them stays on disk."""
        return pa.Table.from_batches(self._parts, self.schema).drop_columns(DRAW.name)

    def parts(self, *names: str) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yields numeric columns, `PART_ROWS` rows at a time."""
        for part in self._parts:
            yield tuple(part.column(name).to_numpy(zero_copy_only=False) for name in names)

    def all(self) -> RowSet:
        """Returns all rows."""
        return RowSet.of_masks(np.ones(len(part), bool) for part in self._parts)


def map_index(folder: Folder, card: Card, tars: pa.Table) -> MappedIndex:
    """Maps a set's index, after checking it where no process of this machine has.

    Args:
        tars: The table of its tars.

    Raises:
        UserError: the index is missing, or a row of it cannot be; or there is no cache.
    """
    info = folder.patiently(lambda: folder.fs.get_file_info(folder.below(INDEX)), INDEX)
    if info.type != pafs.FileType.File:
        raise damaged(folder, INDEX, "missing")
    which = f"{_LAYOUT} {folder.path} {info.size} {info.mtime_ns} {card.digest}"
    home = cache_folder("index")
    file = home / f"{hashlib.blake2b(which.encode(), digest_size=16).hexdigest()}.arrow"
    if not file.exists():
        with locked(file.with_suffix(".lock")):
            if not file.exists():
                _forget_old(home)
                with atomic_file(file) as growing, _local(folder, home) as source:
                    _write(growing, source, folder, card, tars)
    os.utime(file)
    return MappedIndex(file)


def _forget_old(home: Path) -> None:
    for old in home.iterdir():
        if old.stat().st_mtime < time.time() - KEPT_DAYS * 86_400:
            old.unlink(missing_ok=True)  # who has it mapped reads on


@contextmanager
def _local(folder: Folder, home: Path) -> Iterator[IO[bytes]]:
    """Opens the index as a local file, so that an error in it is no error of the network."""
    if folder.is_local:
        with Path(folder.below(INDEX)).open("rb") as file:
            yield file
        return
    copy = home / f".{os.getpid()}.parquet"

    def fetch() -> None:
        with folder.fs.open_input_stream(folder.below(INDEX)) as source, copy.open("wb") as out:
            shutil.copyfileobj(source, out)

    try:
        folder.patiently(fetch, INDEX)
        with copy.open("rb") as file:
            yield file
    finally:
        copy.unlink(missing_ok=True)


def _write(growing: Path, source: IO[bytes], folder: Folder, card: Card, tars: pa.Table) -> None:
    """Checks the rows part by part and writes them."""
    first = 0
    try:
        parquet = pq.ParquetFile(source)
        schema = _schema(parquet.schema_arrow)
        with pa.ipc.new_file(str(growing), schema.append(DRAW)) as out:
            for part in _parts(parquet, schema):
                _check(part, first, card, tars)
                out.write_batch(part.append_column(DRAW, _draws(part["source"])))
                first += len(part)
            total = int(tars["samples"].to_numpy().sum())
            if first != total:
                raise ValueError(f"{first:,} rows, {total:,} in the tars")
            if not first:
                out.write_batch(pa.RecordBatch.from_pylist([], schema.append(DRAW)))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise damaged(folder, INDEX, f"damaged: {error}") from None


def _schema(found: pa.Schema) -> pa.Schema:
    """Returns the schema of the columns that are taken: the known ones, with the known types."""
    missing = {name for name in INDEX_SCHEMA.names if name not in found.names} - LATER
    if missing:
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    schema = pa.schema([field for field in INDEX_SCHEMA if field.name in found.names])
    for field in schema:
        if found.field(field.name).type != field.type:
            raise ValueError(f"column {field.name} holds {found.field(field.name).type}")
    return schema


def _parts(parquet: pq.ParquetFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yields the rows in parts of `PART_ROWS`, the last one shorter."""
    held: list[pa.RecordBatch] = []
    for batch in parquet.iter_batches(PART_ROWS, columns=schema.names):
        held.append(batch.select(schema.names))
        while sum(map(len, held)) >= PART_ROWS:
            table = pa.Table.from_batches(held)
            yield _one(table.slice(0, PART_ROWS), schema)
            held = table.slice(PART_ROWS).to_batches()
    if held:
        yield _one(pa.Table.from_batches(held), schema)


def _one(table: pa.Table, schema: pa.Schema) -> pa.RecordBatch:
    (batch,) = table.combine_chunks().to_batches()
    return pa.RecordBatch.from_arrays(batch.columns, schema=schema)


def _draws(sources: pa.Array) -> pa.Array:
    """Returns a number in [0, 2^32) for each row that depends on its source's name alone."""
    names = sources.dictionary_encode()
    drawn = [
        int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")
        for name in names.dictionary.to_pylist()
    ]
    return pa.array(drawn, pa.uint32()).take(names.indices)


def _check(part: pa.RecordBatch, first: int, card: Card, tars: pa.Table) -> None:
    """Refuses rows that stage 1 cannot have written, before any of them is used.

    Raises:
        ValueError: the message names the first such row and its column.
    """
    names, sizes = tars["shard"].combine_chunks(), tars["bytes"].to_numpy()
    ends = np.cumsum(tars["samples"].to_numpy(), dtype=np.int64)
    numbers = first + np.arange(len(part))
    tar = np.searchsorted(ends, numbers, side="right").clip(max=max(0, len(ends) - 1))
    for field in part.schema:
        if not field.nullable and part[field.name].null_count:
            raise ValueError(f"column {field.name} has rows without a value")
    plain = {
        name: part[name].to_numpy(zero_copy_only=False)
        for name in ("offset", "size", "start_seconds", "end_seconds", "frames", "fps")
    }
    plain |= {name: part[name].to_numpy() for name in ("width", "height")}
    label = pc.fill_null(part["label"], 0).to_numpy()
    room, offset = sizes[tar], plain["offset"]
    span = (plain["start_seconds"] >= 0) & (plain["start_seconds"] <= plain["end_seconds"])
    sides = np.stack([plain["width"], plain["height"]])
    good = {
        "key": _matches(part["key"], r"^[\w.-]{1,255}$"),
        "shard": _numpy("equal", part["shard"], names.take(pa.array(tar))),
        "offset": (offset >= 0) & (offset <= room),
        "size": (plain["size"] > 0) & (plain["size"] <= room - offset),
        "digest": _matches(part["digest"], "^[0-9a-f]{32}$"),
        "source_digest": _matches(part["source_digest"], "^[0-9a-f]{32}$"),
        "end_seconds": span & np.isfinite(plain["end_seconds"]),
        "frames": plain["frames"] > 0,
        "fps": (plain["fps"] > 0) & (plain["fps"] <= MAX_FPS),
        "width or height": ((sides >= 2) & (sides <= MAX_SIDE)).all(0),
        "label": (label >= 0) & (label < max(1, len(card.classes))),
        "splits": _numpy("list_value_length", part["splits"]) == card.num_splits,
    }
    for name, rows in good.items():
        if not rows.all():
            raise ValueError(f"row {numbers[rows.argmin()]:,}: its {name} cannot be")


def _matches(column: pa.Array, pattern: str) -> NDArray[np.bool_]:
    return _numpy("match_substring_regex", column, options=pc.MatchSubstringOptions(pattern))


def _numpy(function: str, *columns: pa.Array, options: Any = None) -> NDArray[Any]:
    return pc.call_function(function, list(columns), options).to_numpy(zero_copy_only=False)
