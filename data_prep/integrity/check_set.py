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

from data_prep.integrity.check_tar import Problem, TarCheck, check_tar
from data_prep.progress import OnProgress
from data_prep.reasons import Rejected
from data_prep.settings import FilterSettings, PrepSettings
from data_prep.shards.ledger import unaccounted
from data_prep.shards.manifest import (
    SETTINGS,
    SOURCES,
    Inspected,
    load_sources,
    record_name,
    shard_place,
)
from data_prep.shards.tables import Tables, counts_of, keys_left_out, quarantine_table
from dynamonet import cluster
from dynamonet.errors import UserError
from dynamonet.settings import validate
from dynamonet.shards import index
from dynamonet.shards.card import CARD, CARD_COPY, RECORDS, Card, DamagedCardError, read_card
from dynamonet.storage import INCOMPLETE, Folder

_TABLES = (index.INDEX, index.SHARDS, index.QUARANTINE, index.DUPLICATES)
# settings on the card that decide no byte of the tars
_NOT_CONTENT = ("source", "lists", "near_duplicates", "exclude", "filters")


@dataclass
class CheckResult:
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


def check_set(folder: Folder, *, decode: bool, on_progress: OnProgress) -> CheckResult:
    """Checks a set; Ray must be connected.

    Raises:
        UserError: there is nothing of a set in the folder, or one of an older version.
    """
    names = folder.names() + folder.names(RECORDS)
    files = {CARD, CARD_COPY, index.INDEX, index.SHARDS}
    if not files & set(names) and not any(shard_place(name) for name in names):
        read_card(folder)  # says what a set is and how to make one
    result = CheckResult()
    card, copy = _card(folder, CARD, result), _card(folder, CARD_COPY, result)
    for each in (card, copy):
        if each is not None:
            each.check_current(folder)
    rows = _table(folder, index.INDEX, index.INDEX_SCHEMA, result)
    shards = _table(folder, index.SHARDS, index.SHARDS_SCHEMA, result)
    quarantine = _table(folder, index.QUARANTINE, index.QUARANTINE_SCHEMA, result)
    copies = _table(folder, index.DUPLICATES, index.DUPLICATES_SCHEMA, result)
    result.duplicates = copies
    left_out = keys_left_out(copies) if copies is not None else set()
    _list_files(names, folder, rows, shards, result)
    inspected = load_sources(folder)
    result.knows_sources = inspected is not None
    if inspected is None:
        result.problems.append(_lost(folder, SOURCES, "damaged"))
    known = card or copy
    if known is None:  # so that what the index leaves out is not known, either
        rows = shards = quarantine = None
    settings = validate(PrepSettings, known.settings if known else {}, origin=CARD)
    arguments = (left_out, settings.filters, decode)
    reports = _check_tars(folder, rows, arguments, result, on_progress)
    if shards is not None:
        _check_shards(shards, reports, result)
    if quarantine is not None and inspected is not None and copies is not None:
        _check_quarantine(quarantine, inspected, reports, copies, result)
    if rows is not None:
        _check_keys(rows, result)
    tables = (rows, shards, quarantine, copies)
    if card is not None and inspected is not None and not any(map(result.blames, _TABLES)):
        made = Tables(*(table for table in tables if table is not None))
        _check_card(card, made, inspected, settings, result)
        for source, text in unaccounted(made.index, made.quarantine, inspected, settings).items():
            result.problems.append(Problem(index.QUARANTINE, source, text, "0 s"))
    _check_copies(folder, card, copy, result)
    return result


def _list_files(
    names: list[str],
    folder: Folder,
    rows: pa.Table | None,
    shards: pa.Table | None,
    result: CheckResult,
) -> None:
    """Notes which tars the set has, and files that do not belong to it."""
    recorded = {
        f"{name.removeprefix(RECORDS + '/').removesuffix('.parquet')}.tar"
        for name in names
        if shard_place(name) and name.startswith(RECORDS)
    }
    for table in (rows, shards):
        result.shards |= set(table["shard"].to_pylist()) if table is not None else set()
    if rows is None or shards is None:
        result.shards |= recorded
    files = {CARD, index.INDEX, index.SHARDS, index.QUARANTINE, index.DUPLICATES}
    files |= {CARD_COPY, index.REPORT, SOURCES, SETTINGS}
    files |= result.shards | {record_name(name) for name in result.shards}
    for name in names:
        if shard_place(name) and name.endswith(".tar") and name not in files:
            result.problems.append(Problem(name, "", "a tar that no table names", "no such tar"))
        elif name not in files:
            result.warnings.append(f"{name}: not a file of this set")
    unfinished = folder.names(INCOMPLETE)
    if unfinished:
        result.warnings.append(
            f"{INCOMPLETE}/: {len(unfinished)} unfinished files, of a run that is going on or was "
            "stopped; stage 1 removes them"
        )


def _check_tars(
    folder: Folder,
    rows: pa.Table | None,
    more: tuple[set[str], FilterSettings, bool],
    result: CheckResult,
    on_progress: OnProgress,
) -> list[TarCheck]:
    sizes = {name: folder.size(name) or 0 for name in sorted(result.shards)}
    result.bytes, done = sum(sizes.values()), 0
    parts = dict.fromkeys(sizes) if rows is None else _by_shard(rows, sizes)
    arguments = ((folder.path, name, parts[name], *more) for name in sizes)
    reports = []
    for report in cluster.in_parallel(check_tar, arguments):
        done += sizes[report.shard]
        on_progress("checking tars", done / 1e6, result.bytes / 1e6)
        reports.append(report)
    reports.sort(key=lambda report: report.shard)
    for report in reports:
        result.problems += report.problems
        result.samples += report.samples
        result.frames += report.frames
        if report.is_good and report.plan:
            result.good[report.shard] = report.plan
    return reports


def _by_shard(rows: pa.Table, shards: Iterable[str]) -> dict[str, pa.Table]:
    """Returns each tar's rows of the index, in the order of the index."""
    places: dict[str, list[int]] = {name: [] for name in shards}
    for place, name in enumerate(rows["shard"].to_pylist()):
        places[name].append(place)
    return {name: rows.take(pa.array(rows_of, pa.int64())) for name, rows_of in places.items()}


def _check_shards(shards: pa.Table, reports: list[TarCheck], result: CheckResult) -> None:
    rows = {row.pop("shard"): row for row in shards.to_pylist()}
    for report in reports:
        row, right = rows.get(report.shard), report.shard_row
        if right is not None and row != right:
            text = "no row" if row is None else _fields(row)
            result.problems.append(Problem(index.SHARDS, report.shard, text, _fields(right)))


def _check_quarantine(
    table: pa.Table,
    inspected: list[Inspected],
    reports: list[TarCheck],
    copies: pa.Table,
    result: CheckResult,
) -> None:
    if any(report.quarantine is None for report in reports):
        return  # a record is lost, and said to be
    parts = [report.quarantine for report in reports if report.quarantine is not None]
    expected = quarantine_table(inspected, parts, copies)
    there, right = (Counter(map(Rejected.of, t.to_pylist())) for t in (table, expected))
    for row in there - right:
        problem = Problem(index.QUARANTINE, row.source, f"{row.reason!r}", "no such row")
        result.problems.append(problem)
    for row in right - there:
        problem = Problem(index.QUARANTINE, row.source, "no such row", f"{row.reason!r}")
        result.problems.append(problem)


def _check_keys(rows: pa.Table, result: CheckResult) -> None:
    for key, count in Counter(rows["key"].to_pylist()).items():
        if count > 1:
            result.problems.append(Problem(index.INDEX, key, f"{count} rows", "one row"))


def _check_card(
    card: Card,
    tables: Tables,
    inspected: list[Inspected],
    settings: PrepSettings,
    result: CheckResult,
) -> None:
    """Compares the card with tables that are right."""
    right = {"digest": index.content_digest(tables.index)}
    right |= {f"counts.{name}": n for name, n in counts_of(tables, inspected, settings)}
    written = {"digest": card.digest} | {f"counts.{name}": n for name, n in card.counts}
    for name in ("counts.listed_but_missing", "counts.found_but_unlisted"):
        right.pop(name)  # of the lists, which the tables do not have
    for name, value in right.items():
        if written[name] != value:
            text = f"{name} {written[name]!r}"
            result.problems.append(Problem(CARD, "", text, f"{name} {value!r}"))
    pairs = zip(
        tables.index["label"].to_pylist(), tables.index["class_name"].to_pylist(), strict=True
    )
    for label, name in sorted({pair for pair in pairs if pair[0] is not None}):
        if label >= len(card.classes) or card.classes[label] != name:
            there = repr(card.classes[label]) if label < len(card.classes) else "none"
            text = f"class {label} {there}"
            result.problems.append(Problem(CARD, "", text, f"{name!r}, as in the index"))
    for count in {len(splits) for splits in tables.index["splits"].to_pylist()}:
        if count != card.num_splits:
            text = f"num_splits {card.num_splits!r}"
            result.problems.append(Problem(CARD, "", text, str(count)))


def _check_copies(
    folder: Folder, card: Card | None, copy: Card | None, result: CheckResult
) -> None:
    """Compares the card with its copy and with the settings in the records."""
    if card is not None and copy is not None and copy != card and not result.blames(CARD):
        differ = [name for name, value in card if getattr(copy, name) != value]
        text = f"other content than {CARD} in {', '.join(differ)}"
        result.problems.append(Problem(CARD_COPY, "", text, "a copy"))
    try:
        settings = json.loads(folder.read(SETTINGS))
    except (OSError, ValueError):
        result.problems.append(_lost(folder, SETTINGS, "damaged"))
        return
    known = card or copy
    if known is None:
        return
    content = {key: value for key, value in known.settings.items() if key not in _NOT_CONTENT}
    if settings != content:
        result.problems.append(Problem(SETTINGS, "", "other settings", "those on the card"))


def _card(folder: Folder, name: str, result: CheckResult) -> Card | None:
    try:
        return read_card(folder, name)
    except DamagedCardError:
        result.problems.append(_lost(folder, name, "damaged"))
    except UserError as error:
        result.problems.append(_lost(folder, name, error.problem))
    return None


def _table(folder: Folder, name: str, schema: pa.Schema, result: CheckResult) -> pa.Table | None:
    try:
        table = pq.read_table(io.BytesIO(folder.read(name)))
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        result.problems.append(_lost(folder, name, f"damaged ({str(error).splitlines()[0]})"))
        return None
    if table.schema.equals(schema):
        return table
    columns = f"columns {', '.join(table.schema.names)}"
    result.problems.append(Problem(name, "", columns, ", ".join(schema.names)))
    return None


def _lost(folder: Folder, name: str, otherwise: str) -> Problem:
    state = "no such file" if folder.size(name) is None else otherwise
    return Problem(name, "", state, "a file of the set")


def _fields(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.items())
