"""A whole set: its tars in parallel, its tables and its card against each other."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.assemble import Tables, counts_of, keys_left_out, quarantine_table
from data_prep.records import (
    SETTINGS,
    SOURCES,
    Inspected,
    OnProgress,
    place_of,
    recall,
    record_name,
)
from data_prep.tars import Problem, TarReport, check_tar
from dynamonet import cluster
from dynamonet.errors import UserError
from dynamonet.shards import index
from dynamonet.storage import INCOMPLETE, Folder

# settings on the card that decide no byte of the tars
_NOT_CONTENT = ("source", "lists", "near_duplicates", "exclude")


@dataclass
class Findings:
    """What the check of a set gave."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    shards: set[str] = field(default_factory=set)  # tars that the set has or should have
    good: dict[str, str] = field(default_factory=dict)  # whole tar: digest of its plan
    knows_sources: bool = False  # records/sources.parquet can be read
    duplicates: pa.Table | None = None  # as far as the table can be read
    samples: int = 0
    frames: int = 0  # decoded
    bytes: int = 0

    def blames(self, name: str) -> bool:
        """Tells whether something is wrong with a file of the set."""
        return any(problem.where == name for problem in self.problems)


def check_set(folder: Folder, *, decode: bool, on_progress: OnProgress) -> Findings:
    """Checks a set; Ray must be connected.

    Raises:
        UserError: there is nothing of a set in the folder, or one of an older version.
    """
    names = folder.names() + folder.names(index.RECORDS)
    files = {index.CARD, index.CARD_COPY, index.INDEX, index.SHARDS}
    if not files & set(names) and not any(place_of(name) for name in names):
        index.read_card(folder)  # says what a set is and how to make one
    found = Findings()
    card = _card(folder, index.CARD, found)
    if card is not None:
        index.check_current(folder, card)
    rows = _table(folder, index.INDEX, index.INDEX_SCHEMA, found)
    shards = _table(folder, index.SHARDS, index.SHARDS_SCHEMA, found)
    quarantine = _table(folder, index.QUARANTINE, index.QUARANTINE_SCHEMA, found)
    copies = _table(folder, index.DUPLICATES, index.DUPLICATES_SCHEMA, found)
    found.duplicates = copies
    left_out = keys_left_out(copies) if copies is not None else set()
    _list_files(names, folder, rows, shards, found)
    inspected = recall(folder)
    found.knows_sources = inspected is not None
    if inspected is None:
        found.problems.append(_lost(folder, SOURCES, "damaged"))
    reports = _check_tars(folder, rows, left_out, found, decode, on_progress)
    if shards is not None:
        _check_shards(shards, reports, found)
    if quarantine is not None and inspected is not None and copies is not None:
        _check_quarantine(quarantine, inspected, reports, copies, found)
    if rows is not None:
        _check_keys(rows, found)
    tables = (rows, shards, quarantine, copies)
    names = (index.INDEX, index.SHARDS, index.QUARANTINE, index.DUPLICATES)
    if card is not None and inspected is not None and not any(map(found.blames, names)):
        _check_card(card, Tables(*(t for t in tables if t is not None)), inspected, found)
    _check_copies(folder, card, found)
    return found


def _list_files(
    names: list[str],
    folder: Folder,
    rows: pa.Table | None,
    shards: pa.Table | None,
    found: Findings,
) -> None:
    """Notes which tars the set has, and files that do not belong to it."""
    recorded = {
        f"{name.removeprefix(index.RECORDS + '/').removesuffix('.parquet')}.tar"
        for name in names
        if place_of(name) and name.startswith(index.RECORDS)
    }
    for table in (rows, shards):
        found.shards |= set(table["shard"].to_pylist()) if table is not None else set()
    if rows is None or shards is None:
        found.shards |= recorded
    files = {index.CARD, index.INDEX, index.SHARDS, index.QUARANTINE, index.DUPLICATES}
    files |= {index.CARD_COPY, index.REPORT, SOURCES, SETTINGS}
    files |= found.shards | {record_name(name) for name in found.shards}
    for name in names:
        if place_of(name) and name.endswith(".tar") and name not in files:
            found.problems.append(Problem(name, "", "a tar that no table names", "no such tar"))
        elif name not in files:
            found.warnings.append(f"{name}: not a file of this set")
    unfinished = folder.names(INCOMPLETE)
    if unfinished:
        found.warnings.append(
            f"{INCOMPLETE}/: {len(unfinished)} unfinished files, of a run that goes on or was "
            "stopped; stage 1 removes them"
        )


def _check_tars(
    folder: Folder,
    rows: pa.Table | None,
    left_out: set[str],
    found: Findings,
    decode: bool,
    on_progress: OnProgress,
) -> list[TarReport]:
    sizes = {name: folder.size(name) or 0 for name in sorted(found.shards)}
    found.bytes, done = sum(sizes.values()), 0
    parts = dict.fromkeys(sizes) if rows is None else _by_shard(rows, sizes)
    arguments = ((folder.path, name, parts[name], left_out, decode) for name in sizes)
    reports = []
    for report in cluster.in_parallel(check_tar, arguments):
        done += sizes[report.shard]
        on_progress("checking tars", done / 1e6, found.bytes / 1e6)
        reports.append(report)
    reports.sort(key=lambda report: report.shard)
    for report in reports:
        found.problems += report.problems
        found.samples += report.samples
        found.frames += report.frames
        if report.is_good and report.plan:
            found.good[report.shard] = report.plan
    return reports


def _by_shard(rows: pa.Table, shards: Iterable[str]) -> dict[str, pa.Table]:
    """Returns each tar's rows of the index, in the order of the index."""
    places: dict[str, list[int]] = {name: [] for name in shards}
    for place, name in enumerate(rows["shard"].to_pylist()):
        places[name].append(place)
    return {name: rows.take(pa.array(found, pa.int64())) for name, found in places.items()}


def _check_shards(shards: pa.Table, reports: list[TarReport], found: Findings) -> None:
    rows = {row.pop("shard"): row for row in shards.to_pylist()}
    for report in reports:
        row, right = rows.get(report.shard), report.shard_row
        if right is not None and row != right:
            text = "no row" if row is None else _fields(row)
            found.problems.append(Problem(index.SHARDS, report.shard, text, _fields(right)))


def _check_quarantine(
    table: pa.Table,
    inspected: list[Inspected],
    reports: list[TarReport],
    copies: pa.Table,
    found: Findings,
) -> None:
    if any(report.quarantine is None for report in reports):
        return  # a record is lost, and said to be
    parts = [report.quarantine for report in reports if report.quarantine is not None]
    there = Counter(tuple(row.values()) for row in table.to_pylist())
    expected = quarantine_table(inspected, parts, copies)
    right = Counter(tuple(row.values()) for row in expected.to_pylist())
    for row in there - right:
        found.problems.append(Problem(index.QUARANTINE, row[0], f"{row[1]!r}", "no such row"))
    for row in right - there:
        found.problems.append(Problem(index.QUARANTINE, row[0], "no such row", f"{row[1]!r}"))


def _check_keys(rows: pa.Table, found: Findings) -> None:
    for key, count in Counter(rows["key"].to_pylist()).items():
        if count > 1:
            found.problems.append(Problem(index.INDEX, key, f"{count} rows", "one row"))


def _check_card(
    card: dict[str, Any], tables: Tables, inspected: list[Inspected], found: Findings
) -> None:
    """Compares the card with tables that are right."""
    facts = {"digest": index.content_digest(tables.index)}
    facts |= {f"counts.{name}": n for name, n in counts_of(tables, inspected).items()}
    said = {"digest": card.get("digest")}
    counts = card.get("counts")
    said |= {f"counts.{k}": v for k, v in (counts if isinstance(counts, dict) else {}).items()}
    for name, right in facts.items():
        if said.get(name) != right:
            text = f"{name} {said.get(name)!r}"
            found.problems.append(Problem(index.CARD, "", text, f"{name} {right!r}"))
    classes = card["classes"] if isinstance(card.get("classes"), list) else []
    pairs = zip(
        tables.index["label"].to_pylist(), tables.index["class_name"].to_pylist(), strict=True
    )
    for label, name in sorted({pair for pair in pairs if pair[0] is not None}):
        if label >= len(classes) or classes[label] != name:
            there = repr(classes[label]) if label < len(classes) else "none"
            text = f"class {label} {there}"
            found.problems.append(Problem(index.CARD, "", text, f"{name!r}, as in the index"))
    for count in {len(splits) for splits in tables.index["splits"].to_pylist()}:
        if count != card.get("num_splits"):
            text = f"num_splits {card.get('num_splits')!r}"
            found.problems.append(Problem(index.CARD, "", text, str(count)))


def _check_copies(folder: Folder, card: dict[str, Any] | None, found: Findings) -> None:
    """Compares the card with its copy and with the settings in the records."""
    copy = _card(folder, index.CARD_COPY, found)
    if card is not None and copy is not None and copy != card and not found.blames(index.CARD):
        keys = ", ".join(sorted(k for k in copy.keys() | card.keys() if copy.get(k) != card.get(k)))
        text = f"other content than {index.CARD} in {keys}"
        found.problems.append(Problem(index.CARD_COPY, "", text, "a copy"))
    try:
        settings = json.loads(folder.read(SETTINGS))
    except (OSError, ValueError):
        found.problems.append(_lost(folder, SETTINGS, "damaged"))
        return
    there = (card or copy or {}).get("settings")
    if not isinstance(there, dict):
        return
    content = {key: value for key, value in there.items() if key not in _NOT_CONTENT}
    if settings != content:
        found.problems.append(Problem(SETTINGS, "", "other settings", "those on the card"))


def _card(folder: Folder, name: str, found: Findings) -> dict[str, Any] | None:
    try:
        return index.read_card(folder, name)
    except UserError as error:
        said = "damaged" if "damaged" in str(error) else str(error).splitlines()[0]
        found.problems.append(_lost(folder, name, said))
        return None


def _table(folder: Folder, name: str, schema: pa.Schema, found: Findings) -> pa.Table | None:
    try:
        table = pq.read_table(io.BytesIO(folder.read(name)))
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        found.problems.append(_lost(folder, name, f"damaged ({str(error).splitlines()[0]})"))
        return None
    if table.schema.equals(schema):
        return table
    columns = f"columns {', '.join(table.schema.names)}"
    found.problems.append(Problem(name, "", columns, ", ".join(schema.names)))
    return None


def _lost(folder: Folder, name: str, otherwise: str) -> Problem:
    found = "no such file" if folder.size(name) is None else otherwise
    return Problem(name, "", found, "a file of the set")


def _fields(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.items())
