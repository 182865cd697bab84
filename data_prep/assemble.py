"""Records -> index, tables and card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_prep import prints
from data_prep.filters import LASTING
from data_prep.labels import Labelling
from data_prep.records import Inspected, Record, place_of, readable_cards, record_name
from data_prep.settings import PrepSettings
from data_prep.sources import EXCLUDED, NEAR, Rejected
from dynamonet import __version__
from dynamonet.errors import UserError
from dynamonet.shards import index
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
    records: dict[str, Record], inspected: list[Inspected], duplicates: pa.Table
) -> Tables:
    """Puts the records of all tars together, in the order in which the tars were planned."""
    names = sorted(records, key=lambda name: place_of(name) or (0, 0))
    left_out = keys_left_out(duplicates)
    kept = {name: records[name].without(left_out) for name in names}
    shards = [{"shard": name, **kept[name].shard_row} for name in names]
    return Tables(
        pa.concat_tables([kept[name].rows for name in names]),
        pa.Table.from_pylist(shards, index.SHARDS_SCHEMA),
        quarantine_table(inspected, [records[name].quarantine for name in names], duplicates),
        duplicates,
    )


def quarantine_table(
    inspected: list[Inspected], quarantines: list[pa.Table], duplicates: pa.Table
) -> pa.Table:
    """Puts together what was left out before, while and after the tars were made."""
    early = [
        vars(Rejected(printable(item.source.path), item.reason))
        for item in inspected
        if item.reason is not None
    ]
    order = [("source", "ascending"), ("start_seconds", "ascending")]
    first = pa.Table.from_pylist(early, index.QUARANTINE_SCHEMA)
    copies = pa.Table.from_pylist(
        [vars(rejected_copy(row)) for row in duplicates.to_pylist() if row["left_out"]],
        index.QUARANTINE_SCHEMA,
    )
    return pa.concat_tables([first, *quarantines, copies]).sort_by(order)


def assemble(
    output: Folder,
    records: dict[str, Record],
    inspected: list[Inspected],
    settings: PrepSettings,
    source: Folder,
    labelling: Labelling | None,
    duplicates: pa.Table,
    excluded: list[dict[str, str]],
) -> dict[str, Any]:
    """Writes index, tables and card; removes tars of older plans.

    Args:
        duplicates: Copies among the segments, see `data_prep.duplicates`.
        excluded: Sets whose copies are left out: name, path and digest.

    Raises:
        UserError: no video gave a segment.
    """
    tables = tables_of(records, inspected, duplicates)
    if not tables.index.num_rows:
        lost = [Rejected(row["source"], row["reason"]) for row in tables.quarantine.to_pylist()]
        raise UserError(f"no usable segment in {len(inspected)} videos:\n  {reasons(lost)}")
    card = {
        "format": index.FORMAT,
        "version": index.FORMAT_VERSION,
        "digest": index.content_digest(tables.index),
        "made_with": __version__,
        "settings": {
            **settings.content(),
            "source": source.path,
            "lists": absolute(settings.lists) if settings.lists else None,
            "near_duplicates": settings.near_duplicates,
            "exclude": settings.excluded_paths(),
        },
        "excluded": excluded,
        "classes": labelling.classes if labelling else [],
        "num_splits": labelling.num_splits if labelling else 0,
        "counts": {
            **counts_of(tables, inspected),
            "listed_but_missing": len(labelling.missing) if labelling else 0,
            "found_but_unlisted": len(labelling.unlisted) if labelling else 0,
        },
    }
    for before in readable_cards(output):
        if before.get("digest") == card["digest"]:  # the same content keeps what made it
            card |= {key: before[key] for key in ("made_with", "run") if key in before}
            break
    tables.write(output)
    index.write_card(output, card)
    remove_stale(output, set(records))
    output.clear_incomplete()
    return card


def counts_of(tables: Tables, inspected: list[Inspected]) -> dict[str, Any]:
    """Returns the card's counts, less those of the lists."""
    taken = set(tables.index["source"].to_pylist())
    quarantine, shards = tables.quarantine.to_pylist(), tables.shards.to_pylist()
    lost = {row["source"]: row["reason"] for row in quarantine if row["source"] not in taken}
    parts = [row["reason"] for row in quarantine if row["source"] in taken]
    return {
        "videos_found": len(inspected),
        "videos_taken": len(taken),
        "samples": tables.index.num_rows,
        "seconds": round(sum(shard["seconds"] for shard in shards), 3),
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": len(shards),
        "near_duplicates": tables.duplicates["of_set"].null_count,
        "in_excluded_sets": len(tables.duplicates) - tables.duplicates["of_set"].null_count,
        "videos_quarantined": dict(Counter(kind_of(reason) for reason in lost.values())),
        "stretches_quarantined": dict(Counter(kind_of(reason) for reason in parts)),
        "videos_normalised": _normalised(tables.index),
    }


def _normalised(rows: pa.Table) -> dict[str, int]:
    """Counts the videos in which each kind of change was made."""
    pairs = zip(rows["source"].to_pylist(), rows["normalised"].to_pylist(), strict=True)
    found = {(source, kind) for source, kinds in pairs for kind in kinds}
    counts = Counter(kind for _, kind in found)
    return {kind: counts[kind] for kind in KINDS if kind in counts}


def remove_stale(output: Folder, shards: set[str]) -> None:
    """Removes tars, and records of tars, that the set does not have."""
    wanted = shards | {record_name(name) for name in shards}
    wanted |= {prints.name_of(name) for name in shards}
    for name in [*output.names(), *output.names(index.RECORDS), *output.names(prints.FOLDER)]:
        if place_of(name) and name not in wanted:
            output.delete(name)


def keys_left_out(duplicates: pa.Table) -> set[str]:
    """Returns the keys of the copies that the index does not have."""
    return {row["key"] for row in duplicates.to_pylist() if row["left_out"]}


def rejected_copy(row: dict[str, Any]) -> Rejected:
    """Returns the row of the quarantine for a copy that was left out."""
    kind = NEAR if row["of_set"] is None else f"{EXCLUDED}, {row['of_set']}"
    apart = f"{row['still_bits']:.1f} of {prints.BITS} bits apart"
    text = f"{kind}: like {row['of_key']} of {row['of_source']}, {apart}"
    return Rejected(row["source"], text, row["start_seconds"], row["end_seconds"])


def reasons(rejected: list[Rejected]) -> str:
    """Returns the most frequent reasons with their counts, one a line."""
    counts = Counter(kind_of(item.reason) for item in rejected)
    return "\n  ".join(f"{count} x {reason}" for reason, count in counts.most_common(8))


def quarantine_counts(card: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yields (what, reason, count) of everything that a set left out."""
    for what in ("videos", "stretches"):
        for reason, count in card["counts"][f"{what}_quarantined"].items():
            yield what, reason, count


def kind_of(reason: str) -> str:
    """Returns the part of a reason that is the same for all videos with this trouble."""
    kinds = (*LASTING, "too small")
    return next((kind for kind in kinds if reason.startswith(kind)), reason)
