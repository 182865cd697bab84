"""Opened data sets: card, mapped index, tars; one, and several as one."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dynamonet.errors import UserError
from dynamonet.settings import validate
from dynamonet.shards.card import CARD, Card, read_card, repair_command
from dynamonet.shards.index import SHARDS, SHARDS_SCHEMA, damaged, read_table
from dynamonet.shards.mapped import MappedIndex, Row, map_index
from dynamonet.shards.rows import BLOCK, RowSet
from dynamonet.shards.settings import FrameSettings, LoaderSettings
from dynamonet.shards.tar_reader import TarCache, TarReader, choose_cache
from dynamonet.storage import Folder
from dynamonet.tracking.origin import DatasetUse, Origin
from dynamonet.tracking.seen import Digests, shortened

TAR_NAME = re.compile(r"[\w-][\w.-]*\.tar")  # never a path


@dataclass(frozen=True)
class ShardSet:
    """An opened data set, checked against the tars; picklable."""

    folder: Folder
    card: Card
    index: MappedIndex
    tars: pa.Table  # SHARDS_SCHEMA

    @classmethod
    def open(cls, path: str) -> ShardSet:
        """Opens a set and checks that every tar is there with the size that the index knows.

        Raises:
            UserError: no set there, written by another version, a table that is damaged, or a tar
                that is missing or truncated; the message names it and the command that rebuilds it.
        """
        folder = Folder.at(path)
        card = read_card(folder)
        tars = read_table(folder, SHARDS)
        _check_tars(folder, tars)
        return cls(folder, card, map_index(folder, card, tars), tars)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def table(self) -> pa.Table:
        """The index as a table, in the order of its file; on disk until it is asked for."""
        return self.index.table

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.path.rsplit("/", 1)[-1]

    def use(self, context: str) -> DatasetUse:
        """Returns the record of what a run does with it; see `DatasetUse`."""
        return DatasetUse(self.name, self.folder.path, self.digest, context)

    @property
    def digest(self) -> str:
        """Digest of the content: the same for the same samples, wherever they lie."""
        return self.card.digest

    @property
    def origin(self) -> Origin | None:
        """The run that made the set, if the card names it."""
        return Origin.read(self.card.run)

    @property
    def classes(self) -> list[str]:
        """Class names in label order; empty for unlabelled sets."""
        return list(self.card.classes)

    @property
    def num_splits(self) -> int:
        return self.card.num_splits

    @property
    def frames(self) -> FrameSettings:
        """How the frames of its segments were made."""
        encode = self.card.settings.get("encode", {})
        known = {key: encode[key] for key in FrameSettings.model_fields if key in encode}
        return validate(FrameSettings, known, origin=f"{self.folder.path}/{CARD}")

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The numeric columns as arrays in memory; a missing label is -1."""
        names = ("offset", "size", "frames", "fps", "width", "height")
        columns = {name: self.table[name].to_numpy() for name in names}
        columns["label"] = pc.fill_null(self.table["label"], -1).to_numpy()
        return columns

    def rows(self, *, split: int | None = None, part: str | None = None) -> RowSet:
        """Returns the rows of one part (train, val, test) of one split, or all.

        Args:
            split: 1-based number of the split.

        Raises:
            UserError: the set has no such split.
        """
        if split is None:
            return self.index.all()
        if not 1 <= split <= self.num_splits:
            have = f"splits 1..{self.num_splits}" if self.num_splits else "no splits"
            raise UserError(f"{self.folder.path}: no split {split}; this set has {have}")
        parts = pc.call_function("list_element", [self.table["splits"], split - 1])
        own = pc.call_function("equal", [parts, pa.scalar(part)])
        return RowSet.of(pc.call_function("indices_nonzero", [own]).to_numpy(), len(self))

    def drawn(self, share: float) -> RowSet:
        """Returns the rows of about a share of the sources; a source is wholly in or out.

        A source's place depends on its own name, so adding sources moves no other.
        """
        limit = share * 2**32
        return RowSet.of_masks(draw < limit for (draw,) in self.index.parts("draw"))


def _check_tars(folder: Folder, tars: pa.Table) -> None:
    """Compares the tars with their table.

    Raises:
        UserError: the table cannot be of this format, or a tar is not as long as it says.
    """
    if not tars.schema.equals(SHARDS_SCHEMA):
        raise damaged(folder, SHARDS, f"damaged: its columns are {', '.join(tars.schema.names)}")
    for column in ("bytes", "samples"):
        if tars[column].null_count or (tars[column].to_numpy() < 0).any():
            raise damaged(folder, SHARDS, f"damaged: a tar without {column}")
    wrong, there = [], folder.sizes()
    for name, size in zip(tars["shard"].to_pylist(), tars["bytes"].to_pylist(), strict=True):
        if not TAR_NAME.fullmatch(name):
            raise damaged(folder, SHARDS, f"damaged: {name!r} is no name of a tar")
        actual = there.get(name)
        if actual != size:
            state = "missing" if actual is None else f"{actual:,} bytes instead of {size:,}"
            wrong.append(f"{folder.path}/{name}: {state}")
    if wrong:
        more = f"\n... and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            "shards changed after they were written:\n  " + "\n  ".join(wrong[:5]) + more,
            f"Rebuild only what is damaged with\n  {repair_command(folder)}",
        )


class Part(NamedTuple):
    """One of several sets that are read as one."""

    first: int  # number of its first row
    index: MappedIndex  # type: ignore[assignment]  # tuple has a method of this name
    tars: TarReader


class JoinedSets:
    """Sets whose rows are numbered through, each beginning with a whole `rows.BLOCK`; picklable."""

    def __init__(self, sets: Sequence[ShardSet], loader: LoaderSettings) -> None:
        """Raises UserError if the cache for remote sets is too small for the order of reading."""
        self.cache: TarCache | None = None
        remote = [each.tars["bytes"].to_pylist() for each in sets if not each.folder.is_local]
        if remote:
            largest = sum(sum(sorted(sizes)[-loader.window_shards :]) for sizes in remote)
            window = largest if loader.shuffle == "shard_window" else None
            self.cache = choose_cache(sum(map(sum, remote)), window, loader.cache_gb)
        self.parts: list[Part] = []
        first = 0
        for each in sets:
            own = None if each.folder.is_local else self.cache
            tars = TarReader(each.folder.path, each.digest, each.tars, own, loader.retry_seconds)
            self.parts.append(Part(first, each.index, tars))
            first += -(-len(each) // BLOCK) * BLOCK
        self.num_rows = first

    def all(self) -> RowSet:
        """Returns all rows."""
        return RowSet.joined(part.index.all() for part in self.parts)

    def rows_where(self, fits: Callable[..., NDArray[np.bool_]], *names: str) -> RowSet:
        """Returns the rows for whose columns of these names a function says yes."""
        return RowSet.joined(
            RowSet.of_masks(fits(*columns) for columns in part.index.parts(*names))
            for part in self.parts
        )

    def source_digests(self, rows: RowSet) -> Digests:
        """Returns the shortened digests of the source videos that some rows are of, each once."""
        found = [shortened([])]
        for part in self.parts:
            first = part.first
            for (digests,) in part.index.parts("source_digest"):
                places = np.arange(first, first + len(digests))
                found.append(np.unique(shortened(set(digests[rows.holds(places)]))))
                first += len(digests)
        return np.unique(np.concatenate(found))

    def find(self, row: int) -> tuple[Row, TarReader]:
        """Returns what the index says of a row, and its set's tars."""
        part = self.parts[bisect_right(self.parts, row, key=lambda each: each.first) - 1]
        return part.index[row - part.first], part.tars

    def allow_damaged(self, damaged: int, samples: int, most: float) -> None:
        """Refuses an epoch in which more than one sample, and a share `most` of all, are damaged.

        Raises:
            UserError: the message has the commands that check the sets.
        """
        if damaged > max(1, most * samples):
            commands = [repair_command(part.tars.folder) for part in self.parts]
            raise UserError(
                f"{damaged} samples of this epoch are damaged, more than "
                f"loader.max_failed_share = {most:g}",
                "Check the shards with\n  " + "\n  ".join(commands),
            )

    def look_ahead(self, now: Sequence[int], soon: Sequence[int]) -> None:
        """Lets what a slow store must give be on its way before it is waited for.

        Args:
            now: Rows that are about to be read.
            soon: Rows whose tars will be wanted later.
        """
        if all(part.tars.folder.is_local for part in self.parts):
            return
        for row, tars in map(self.find, now):
            tars.begin(row.shard, row.offset, row.size)
        for row, tars in map(self.find, soon):
            tars.prefetch(row.shard)
