"""Copies among the segments of a set, and of the segments of sets that must not be trained on.

    tars --fingerprint_tar, once--> fingerprints --matching--> pairs --the first stays--> table

A copy stays in its tar and is left out of the index, which is what readers read: tars do not depend
on each other, and another decision costs no new encoding.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pyarrow as pa

from data_prep.dedup import matching
from data_prep.dedup.fingerprints import (
    Fingerprint,
    fingerprint_samples,
    fingerprint_tar,
    name_of,
    parse,
)
from data_prep.dedup.matching import Match
from data_prep.progress import OnProgress
from data_prep.segments.filters import sift
from data_prep.settings import PrepSettings
from dynamonet import cluster
from dynamonet.cluster import TwoSteps
from dynamonet.errors import UserError
from dynamonet.shards import index
from dynamonet.shards.card import ExcludedSet
from dynamonet.shards.index import ShardSet
from dynamonet.storage import Folder

SAMPLES = 64  # that a task makes fingerprints of
PAIRS = 256  # that a task compares: enough to hide the cost of a task
COLUMNS = ["key", "source", "start_seconds", "end_seconds", "digest", "offset", "size"]
Matches = dict[int, list[tuple[int, Match]]]  # segment -> earlier ones that it is a copy of


def open_excluded(settings: PrepSettings) -> list[ShardSet]:
    """Opens the sets whose copies are to be left out.

    Raises:
        UserError: one is no set, or is the set that is to be made.
    """
    output = settings.output_path()
    if output in settings.excluded_paths():
        raise UserError(f"--exclude {output}: is the set being made; name another one")
    return [ShardSet.open(path) for path in settings.excluded_paths()]


def describe_excluded(shards: ShardSet) -> ExcludedSet:
    """Returns what the card says of an excluded set."""
    path = shards.folder.path
    return ExcludedSet(name=path.rsplit("/", 1)[-1], path=path, digest=shards.digest)


def find_duplicates(
    output: Folder,
    tars: dict[str, pa.Table],
    excluded: list[ShardSet],
    settings: PrepSettings,
    on_progress: OnProgress,
) -> pa.Table:
    """Finds the copies among the segments of a set; Ray must be connected.

    Segments are in the order of source, time and key, those of excluded sets before all others. A
    segment is a copy if it is like an earlier one that is none itself, or like an excluded one.

    What the filters leave out is no copy and has none.

    Args:
        tars: What each tar holds: rows as in the index.

    Raises:
        UserError: a segment of an excluded set cannot be read.
    """
    if settings.near_duplicates == "off" and not excluded:
        return pa.Table.from_pylist([], index.DUPLICATES_SCHEMA)
    parts = [(each.folder, _by_shard(each.table), False) for each in excluded]
    parts.append((output, tars, True))
    rows: list[dict[str, Any]] = []
    fingerprints: list[Fingerprint] = []
    for folder, rows_of, own in parts:
        place = None if own else folder.path
        by_key = _load_fingerprints(folder, rows_of, own, on_progress)
        tables = [sift(t, settings.filters)[0] if own else t for t in rows_of.values()]
        listed = [row for table in tables for row in table.select(COLUMNS).to_pylist()]
        listed.sort(key=lambda row: (row["source"], row["start_seconds"], row["key"]))
        rows += [{**row, "set": place} for row in listed]
        fingerprints += [by_key[row["key"]] for row in listed]
    num_excluded = sum(len(each) for each in excluded)
    matches = _matches(fingerprints, num_excluded, settings.near_duplicates != "off", on_progress)
    found_copies = decide(len(rows), num_excluded, matches)
    drop = settings.near_duplicates == "drop"
    table = [_row(rows[i], rows[of], match, drop) for i, (of, match) in found_copies.items()]
    return pa.Table.from_pylist(table, index.DUPLICATES_SCHEMA)


def decide(num: int, num_excluded: int, matches: Matches) -> dict[int, tuple[int, Match]]:
    """Returns each copy with what it is a copy of: an excluded segment, else the closest first."""
    copies: dict[int, tuple[int, Match]] = {}
    for place in range(num_excluded, num):
        options = [(of, match) for of, match in matches.get(place, ()) if of not in copies]
        if options:
            copies[place] = min(options, key=lambda o: (o[0] >= num_excluded, o[1].still, o[0]))
    return copies


def _matches(
    fingerprints: list[Fingerprint], num_excluded: int, among_own: bool, on_progress: OnProgress
) -> Matches:
    pairs = matching.candidates(fingerprints)
    pairs = pairs[pairs[:, 1] >= num_excluded]
    if not among_own:
        pairs = pairs[pairs[:, 0] < num_excluded]
    batches = [pairs[i : i + PAIRS].tolist() for i in range(0, len(pairs), PAIRS)]
    arguments = (
        (n, [(fingerprints[a], fingerprints[b]) for a, b in batches[n]])
        for n in range(len(batches))
    )
    matches: Matches = defaultdict(list)
    done = 0
    if batches:
        on_progress("comparing pairs", done, len(pairs))
    for number, results in cluster.in_parallel(_compare, arguments):
        for (earlier, later), match in zip(batches[number], results, strict=True):
            if match is not None:
                matches[later].append((earlier, match))
        done += len(results)
        on_progress("comparing pairs", done, len(pairs))
    return matches


def _compare(
    number: int, pairs: list[tuple[Fingerprint, Fingerprint]]
) -> tuple[int, list[Match | None]]:
    """Compares a batch of pairs; runs in a Ray task."""
    return number, [matching.match_segments(one, other) for one, other in pairs]


def _load_fingerprints(
    folder: Folder, tars: dict[str, pa.Table], keep: bool, on_progress: OnProgress
) -> dict[str, Fingerprint]:
    """Returns the fingerprints of all samples, by key; makes those that are not there."""
    by_key: dict[str, Fingerprint] = {}
    todo: list[TwoSteps[int]] = []
    for name, rows in tars.items():
        known = parse(folder.read(name_of(name)), rows) if folder.size(name_of(name)) else None
        by_key |= known or {}
        if known is None:
            listed = rows.select(COLUMNS).to_pylist()
            parts = {
                first: (folder.path, name, listed[first : first + SAMPLES])
                for first in range(0, len(listed), SAMPLES)
            }
            todo.append(TwoSteps(parts, (folder.path, name, rows.select(COLUMNS), keep)))
    done, total = 0, sum(tar.whole[2].num_rows for tar in todo)
    if todo:
        on_progress("fingerprints", done, total)  # so that the rate counts from here
    for tar, first, fingerprints in cluster.in_two_steps(
        fingerprint_samples, fingerprint_tar, todo
    ):
        if first is None:
            by_key |= fingerprints
        else:
            done += len(tar.parts[first][2])
            on_progress("fingerprints", done, total)
    return by_key


def _by_shard(table: pa.Table) -> dict[str, pa.Table]:
    """Returns the rows of an index by tar."""
    order = table.sort_by([("shard", "ascending"), ("offset", "ascending")])
    names = order["shard"].to_pylist()
    starts = [i for i, name in enumerate(names) if not i or names[i - 1] != name]
    return {
        names[start]: order.slice(start, end - start)
        for start, end in zip(starts, [*starts[1:], len(names)], strict=True)
    }


def _row(copy: dict[str, Any], of: dict[str, Any], match: Match, drop: bool) -> dict[str, Any]:
    return {
        **{name: copy[name] for name in ("key", "source", "start_seconds", "end_seconds")},
        "of_key": of["key"],
        "of_source": of["source"],
        "of_set": of["set"],
        "still_bits": match.still,
        "motion_bits": None if math.isnan(match.motion) else match.motion,
        "left_out": drop or of["set"] is not None,
    }
