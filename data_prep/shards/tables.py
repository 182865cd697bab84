"""Records -> index, tables and card."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from data_prep.reasons import Rejected, RejectReason
from data_prep.segments.filters import sift
from data_prep.settings import FilterSettings, PrepSettings
from data_prep.shards.ledger import ledgers
from data_prep.shards.manifest import Inspected, Record, record_name, shard_place
from data_prep.sources.labels import Labelling
from dynamonet import __version__
from dynamonet.copies import fingerprints
from dynamonet.errors import UserError
from dynamonet.shards import index
from dynamonet.shards.card import RECORDS, Card, Counts, ExcludedSet
from dynamonet.storage import Folder, absolute
from dynamonet.video.files import printable
from dynamonet.video.normalise import KINDS


@dataclass(frozen=True)
class Tables:
    """The tables of a set."""

    index: pa.Table
    shards: pa.Table
    quarantine: pa.Table
    duplicates: pa.Table

    def write(self, output: Folder) -> None:
        index.write_table(output, index.INDEX, self.index)
        index.write_table(output, index.SHARDS, self.shards)
        index.write_table(output, index.QUARANTINE, self.quarantine)
        index.write_table(output, index.DUPLICATES, self.duplicates)


def tables_of(
    records: dict[str, Record],
    inspected: list[Inspected],
    duplicates: pa.Table,
    filters: FilterSettings,
) -> Tables:
    """Puts the records of all tars together, in the order in which the tars were planned."""
    names = sorted(records)
    left_out = keys_left_out(duplicates)
    sifted = {name: filtered(records[name], filters) for name in names}
    kept = {name: sifted[name].without(left_out) for name in names}
    shards = [{"shard": name, **kept[name].shard_row} for name in names]
    return Tables(
        pa.concat_tables([kept[name].rows for name in names]),
        pa.Table.from_pylist(shards, index.SHARDS_SCHEMA),
        quarantine_table(inspected, [sifted[name].quarantine for name in names], duplicates),
        duplicates,
    )


def filtered(record: Record, filters: FilterSettings) -> Record:
    """Returns the record with what the filters leave out in its quarantine."""
    kept, left_out = sift(record.rows, filters)
    lost = [
        vars(item.rejected(row, filters))
        for item, rows in left_out.items()
        for row in rows.to_pylist()
    ]
    table = pa.Table.from_pylist(lost, index.QUARANTINE_SCHEMA)
    return replace(record, rows=kept, quarantine=pa.concat_tables([record.quarantine, table]))


def quarantine_table(
    inspected: list[Inspected], quarantines: list[pa.Table], duplicates: pa.Table
) -> pa.Table:
    """Puts together what was left out before, while and after the tars were made."""
    early = [vars(item.rejected) for item in inspected if item.rejected]
    early += [vars(row) for item in inspected if (row := _cut_short(item))]
    order = [("source", "ascending"), ("start_seconds", "ascending")]
    first = pa.Table.from_pylist(early, index.QUARANTINE_SCHEMA)
    copies = pa.Table.from_pylist(
        [vars(rejected_copy(row)) for row in duplicates.to_pylist() if row["left_out"]],
        index.QUARANTINE_SCHEMA,
    )
    return pa.concat_tables([first, *quarantines, copies]).sort_by(order)


def _cut_short(item: Inspected) -> Rejected | None:
    """Returns the row for what a source's header promises beyond its end."""
    info = item.info
    if info is None or item.rejected or not info.declared_seconds:
        return None
    kind = RejectReason.ENDS_EARLY
    text = f"{kind.value}: {info.seconds:.2f} s of {info.declared_seconds:.2f} s"
    text += f": {info.trouble}" if info.trouble else ""
    span = info.seconds, info.declared_seconds
    return Rejected(printable(item.source.path), kind, text, *span)


def make_card(
    tables: Tables,
    inspected: list[Inspected],
    settings: PrepSettings,
    labelling: Labelling | None,
    excluded: list[ExcludedSet],
) -> Card:
    """Returns the card of a set.

    Args:
        excluded: Sets whose copies are left out.

    Raises:
        UserError: no video gave a segment.
    """
    if not tables.index.num_rows:
        lost = [Rejected.of(row) for row in tables.quarantine.to_pylist()]
        raise UserError(f"no usable segment in {len(inspected)} videos:\n  {reasons(lost)}")
    counts = counts_of(tables, inspected, settings)
    if labelling:
        listed = {"listed_but_missing": len(labelling.missing)}
        listed |= {"found_but_unlisted": len(labelling.unlisted)}
        counts = counts.model_copy(update=listed)
    return Card(
        digest=index.content_digest(tables.index),
        made_with=__version__,
        settings={
            **settings.content(),
            "filters": settings.filters.model_dump(mode="json"),
            "source": absolute(settings.source or ""),
            "lists": absolute(settings.lists) if settings.lists else None,
            "near_duplicates": settings.near_duplicates,
            "exclude": settings.excluded_paths(),
        },
        excluded=tuple(excluded),
        classes=tuple(labelling.classes) if labelling else (),
        num_splits=labelling.num_splits if labelling else 0,
        counts=counts,
    )


def counts_of(tables: Tables, inspected: list[Inspected], settings: PrepSettings) -> Counts:
    """Returns the card's counts, less those of the lists."""
    taken = set(tables.index["source"].to_pylist())
    quarantine = [Rejected.of(row) for row in tables.quarantine.to_pylist()]
    lost = {item.source: item.group for item in quarantine if item.source not in taken}
    parts = Counter(item.group for item in quarantine if item.source in taken)
    shards = tables.shards.to_pylist()
    books = ledgers(tables.index, tables.quarantine, inspected, settings.encode.max_fps).values()
    return Counts(
        videos_found=len(inspected),
        videos_taken=len(taken),
        samples=tables.index.num_rows,
        seconds=round(sum(shard["seconds"] for shard in shards), 3),
        seconds_declared=round(sum(book.declared for book in books), 3),
        seconds_quarantined=round(sum(book.left_out for book in books), 3),
        seconds_not_asked_for=round(sum(book.rest for book in books), 3),
        bytes=sum(shard["bytes"] for shard in shards),
        shards=len(shards),
        near_duplicates=tables.duplicates["of_set"].null_count,
        in_excluded_sets=len(tables.duplicates) - tables.duplicates["of_set"].null_count,
        videos_quarantined=dict(Counter(lost.values())),
        stretches_quarantined=dict(parts),
        videos_normalised=_normalised(tables.index),
    )


def _normalised(rows: pa.Table) -> dict[str, int]:
    """Counts the videos in which each kind of change was made."""
    pairs = zip(rows["source"].to_pylist(), rows["normalised"].to_pylist(), strict=True)
    changes = {(source, kind) for source, kinds in pairs for kind in kinds}
    counts = Counter(kind for _, kind in changes)
    return {kind: counts[kind] for kind in KINDS if kind in counts}


def remove_stale(output: Folder, shards: set[str], card: Card) -> None:
    """Removes what belongs to tars that the set does not have, or to sets no longer excluded."""
    wanted = shards | {record_name(name) for name in shards}
    wanted |= {fingerprints.name_of(name) for name in shards}
    for name in [*output.names(), *output.names(RECORDS)]:
        if shard_place(name) and name not in wanted:
            output.delete(name)
    excluded = tuple(f"{fingerprints.FOLDER}/{each.digest}-" for each in card.excluded)
    for name in output.names(fingerprints.FOLDER):
        if name not in wanted and not name.startswith(excluded):
            output.delete(name)


def keys_left_out(duplicates: pa.Table) -> set[str]:
    """Returns the keys of the copies that the index does not have."""
    return {row["key"] for row in duplicates.to_pylist() if row["left_out"]}


def rejected_copy(row: dict[str, Any]) -> Rejected:
    """Returns the row of the quarantine for a copy that was left out."""
    kind, where = RejectReason.NEAR_DUPLICATE, ""
    if row["of_set"] is not None:
        kind, where = RejectReason.IN_EXCLUDED_SET, f", {row['of_set']}"
    apart = f"{row['still_bits']:.1f} of {fingerprints.BITS} bits apart"
    text = f"{kind.value}{where}: like {row['of_key']} of {row['of_source']}, {apart}"
    return Rejected(row["source"], kind, text, row["start_seconds"], row["end_seconds"])


def reasons(rejected: list[Rejected]) -> str:
    """Returns the most frequent reasons with their counts, one a line."""
    counts = Counter(item.group for item in rejected)
    return "\n  ".join(f"{count} x {reason}" for reason, count in counts.most_common(8))
