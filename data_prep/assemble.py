"""Records -> index, tables and card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_prep.filters import is_lasting
from data_prep.labels import Labelling
from data_prep.records import Inspected, Record, place_of, readable_cards, record_name
from data_prep.settings import PrepSettings
from data_prep.sources import Rejected
from dynamonet import __version__
from dynamonet.errors import UserError
from dynamonet.shards import index
from dynamonet.storage import Folder, absolute
from dynamonet.video.files import printable
from dynamonet.video.normalise import KINDS


@dataclass(frozen=True)
class Tables:
    """The three tables of a set."""

    index: pa.Table
    shards: pa.Table
    quarantine: pa.Table

    def write(self, output: Folder) -> None:
        index.write_table(output, index.INDEX, self.index)
        index.write_table(output, index.SHARDS, self.shards)
        index.write_table(output, index.QUARANTINE, self.quarantine)


def tables_of(records: dict[str, Record], inspected: list[Inspected]) -> Tables:
    """Puts the records of all tars together, in the order in which the tars were planned."""
    names = sorted(records, key=lambda name: place_of(name) or (0, 0))
    shards = [{"shard": name, **records[name].shard_row} for name in names]
    return Tables(
        pa.concat_tables([records[name].rows for name in names]),
        pa.Table.from_pylist(shards, index.SHARDS_SCHEMA),
        quarantine_table(inspected, [records[name].quarantine for name in names]),
    )


def quarantine_table(inspected: list[Inspected], quarantines: list[pa.Table]) -> pa.Table:
    """Puts together what was left out before and while the tars were made."""
    early = [
        vars(Rejected(printable(item.source.path), item.reason))
        for item in inspected
        if item.reason is not None
    ]
    order = [("source", "ascending"), ("start_seconds", "ascending")]
    first = pa.Table.from_pylist(early, index.QUARANTINE_SCHEMA)
    return pa.concat_tables([first, *quarantines]).sort_by(order)


def assemble(
    output: Folder,
    records: dict[str, Record],
    inspected: list[Inspected],
    settings: PrepSettings,
    source: Folder,
    labelling: Labelling | None,
) -> dict[str, Any]:
    """Writes index, tables and card; removes tars of older plans.

    Raises:
        UserError: no video gave a segment.
    """
    tables = tables_of(records, inspected)
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
        },
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
        "videos_quarantined": dict(Counter(_kind(reason) for reason in lost.values())),
        "stretches_quarantined": dict(Counter(_kind(reason) for reason in parts)),
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
    for name in [*output.names(), *output.names(index.RECORDS)]:
        if place_of(name) and name not in wanted:
            output.delete(name)


def reasons(rejected: list[Rejected]) -> str:
    """Returns the most frequent reasons with their counts, one a line."""
    counts = Counter(_kind(item.reason) for item in rejected)
    return "\n  ".join(f"{count} x {reason}" for reason, count in counts.most_common(8))


def quarantine_counts(card: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yields (what, reason, count) of everything that a set left out."""
    for what in ("videos", "stretches"):
        for reason, count in card["counts"][f"{what}_quarantined"].items():
            yield what, reason, count


def _kind(reason: str) -> str:
    """Returns the part of a reason that is the same for all videos with this trouble."""
    has_number = is_lasting(reason) or reason.startswith("too small")
    return reason.split(": ")[0] if has_number else reason
