"""Copies among the segments of a set, and of the segments of sets that must not be trained on.

    tars --once--> fingerprints --blocks, two at a time--> matches --the first stays--> table

A copy stays in its tar and is left out of the index, which is what readers read: tars do not depend
on each other, and another decision costs no new encoding.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.progress import OnProgress
from data_prep.segments.filters import sift
from data_prep.settings import PrepSettings
from dynamonet import cluster
from dynamonet.cluster import TwoSteps
from dynamonet.copies.fingerprints import (
    Fingerprint,
    FingerprintFile,
    fingerprint_samples,
    fingerprint_tar,
    name_of,
    read_fingerprints,
)
from dynamonet.copies.matching import Match, matched_pairs
from dynamonet.errors import UserError
from dynamonet.shards import index
from dynamonet.shards.card import ExcludedSet
from dynamonet.shards.shard_set import ShardSet
from dynamonet.storage import Folder

SAMPLES = 64  # that a task makes fingerprints of
TARS = 64  # that a task looks for the fingerprints of
BLOCK_SECONDS = 1e6  # of video that a task compares with as much: about 2 GB of memory
COLUMNS = ["key", "source", "start_seconds", "end_seconds", "digest", "offset", "size"]
Matches = dict[int, list[tuple[int, Match]]]  # segment -> earlier ones that it is a copy of


@dataclass
class Block:
    """Segments of some tars, by their places in the order of all."""

    own: bool  # of the set that is made, not of an excluded one
    seconds: float = 0.0
    files: list[tuple[str, str, list[str], list[int]]] = field(default_factory=list)

    def read(self) -> tuple[NDArray[np.int64], list[Fingerprint]]:
        """Reads the fingerprints; returns the segments' places and theirs, lowest place first."""
        places, fingerprints = [], []
        for folder, name, keys, places_of in self.files:
            fingerprints += read_fingerprints(folder, name, keys)
            places += places_of
        order = np.argsort(places)
        return np.array(places, np.int64)[order], [fingerprints[n] for n in order]


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
    return ExcludedSet(name=shards.name, path=shards.folder.path, digest=shards.digest)


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
    files: list[FingerprintFile] = []
    listed: list[pa.Table] = []
    for each in excluded:
        of_set = _files_of_excluded(each, output)
        listed.append(_listed([tar.rows for tar in of_set], len(files), each.folder.path))
        files += of_set
    num_excluded = sum(table.num_rows for table in listed)
    sifted = [sift(rows, settings.filters)[0].select(COLUMNS) for rows in tars.values()]
    listed.append(_listed(sifted, len(files), None))
    files += [
        FingerprintFile.of(output.path, name, rows.select(COLUMNS)) for name, rows in tars.items()
    ]
    _make_missing([file for file in files if file.folder == output.path], on_progress)
    segments = pa.concat_tables(listed)
    blocks = _blocks(segments, files, num_excluded)
    matches = _matches(blocks, settings.near_duplicates != "off", on_progress)
    copies = decide(segments.num_rows, num_excluded, matches)
    drop = settings.near_duplicates == "drop"
    rows, of = (
        segments.take(pa.array(places, pa.int64())).to_pylist()
        for places in (copies.keys(), [earlier for earlier, _ in copies.values()])
    )
    found = zip(rows, of, copies.values(), strict=True)
    table = [_row(copy, earlier, match, drop) for copy, earlier, (_, match) in found]
    return pa.Table.from_pylist(table, index.DUPLICATES_SCHEMA)


def decide(num: int, num_excluded: int, matches: Matches) -> dict[int, tuple[int, Match]]:
    """Returns each copy with what it is a copy of: an excluded segment, else the closest first."""
    copies: dict[int, tuple[int, Match]] = {}
    for place in range(num_excluded, num):
        options = [(of, match) for of, match in matches.get(place, ()) if of not in copies]
        if options:
            copies[place] = min(options, key=lambda o: (o[0] >= num_excluded, o[1].still, o[0]))
    return copies


def _files_of_excluded(shards: ShardSet, output: Folder) -> list[FingerprintFile]:
    """Returns the files of an excluded set: its own that are whole, else some below `output`."""
    path = shards.folder.path
    tars = index.by_tar(shards.table.select([*COLUMNS, "shard"]))
    theirs = [FingerprintFile.of(path, name, rows.select(COLUMNS)) for name, rows in tars.items()]
    missing = _missing(theirs)
    return [
        replace(tar, folder=output.path, name=name_of(tar.tar, shards.digest))
        if number in missing
        else tar
        for number, tar in enumerate(theirs)
    ]


def _missing(files: list[FingerprintFile]) -> set[int]:
    """Returns the places of those whose fingerprints are not there, or damaged."""
    batches = ((first, files[first : first + TARS]) for first in range(0, len(files), TARS))
    return {n for found in cluster.in_parallel(_missing_in, batches) for n in found}


def _missing_in(first: int, files: list[FingerprintFile]) -> list[int]:
    """Looks at some files of fingerprints; runs in a Ray task."""
    return [first + n for n, tar in enumerate(files) if not tar.is_whole()]


def _make_missing(files: list[FingerprintFile], on_progress: OnProgress) -> None:
    """Makes the fingerprints that are not there."""
    missing = [files[number] for number in sorted(_missing(files))]
    done, total = 0, sum(file.rows.num_rows for file in missing)
    if missing:
        on_progress("fingerprints", done, total)  # so that the rate counts from here
    work = (_work(file) for file in missing)
    for item, first, _ in cluster.in_two_steps(fingerprint_samples, fingerprint_tar, work):
        if first is not None:
            done += len(item.parts[first][2])
            on_progress("fingerprints", done, total)


def _work(file: FingerprintFile) -> TwoSteps[int]:
    rows = file.rows.to_pylist()
    parts = {
        first: (file.tar_folder, file.tar, rows[first : first + SAMPLES])
        for first in range(0, len(rows), SAMPLES)
    }
    return TwoSteps(parts, (file,))


def _listed(tars: list[pa.Table], first: int, of_set: str | None) -> pa.Table:
    """Returns a set's segments in the order in which copies are decided.

    Args:
        first: Place of its first tar among all.
    """
    numbered = []
    for number, rows in enumerate(tars, first):
        file = pa.array(np.full(rows.num_rows, number))
        of = pa.array([of_set] * rows.num_rows, pa.string())
        numbered.append(rows.append_column("file", file).append_column("set", of))
    order = [(name, "ascending") for name in ("source", "start_seconds", "key")]
    return pa.concat_tables(numbered).combine_chunks().sort_by(order)


def _blocks(segments: pa.Table, files: list[FingerprintFile], num_excluded: int) -> list[Block]:
    """Divides all segments into blocks of whole tars, excluded sets before the own one."""
    file_of, keys = segments["file"].to_numpy(), segments["key"]
    seconds = segments["end_seconds"].to_numpy() - segments["start_seconds"].to_numpy()
    order = np.argsort(file_of, kind="stable")
    blocks: list[Block] = []
    tars = np.split(order, np.flatnonzero(np.diff(file_of[order])) + 1) if len(order) else []
    for places in tars:
        file, own = files[file_of[places[0]]], bool(places[0] >= num_excluded)
        if not blocks or blocks[-1].own != own or blocks[-1].seconds >= BLOCK_SECONDS:
            blocks.append(Block(own))
        names = keys.take(places).to_pylist()
        blocks[-1].files.append((file.folder, file.name, names, places.tolist()))
        blocks[-1].seconds += float(seconds[places].sum())
    return blocks


def _matches(blocks: list[Block], among_own: bool, on_progress: OnProgress) -> Matches:
    """Compares every own block with the excluded ones, itself, and the own ones before it."""
    work = [
        (one, None if one is other else other)
        for number, other in enumerate(blocks)
        for one in blocks[: number + 1]
        if other.own and (among_own or not one.own)
    ]
    num = sum(len(places) for block in blocks for *_, places in block.files if block.own)
    matches: Matches = defaultdict(list)
    if work:
        on_progress("comparing", 0, num)
    for done, found in enumerate(cluster.in_parallel(_compare, work), 1):
        for earlier, later, match in found:
            matches[later].append((earlier, match))
        on_progress("comparing", num * done / len(work), num)
    return matches


def _compare(one: Block, other: Block | None) -> list[tuple[int, int, Match]]:
    """Finds copies between two blocks, or in one; runs in a Ray task."""
    faiss.omp_set_num_threads(1)  # tasks are the parallelism
    places, ours = one.read()
    others, theirs = other.read() if other else (places, ours)
    found = []
    for here, there, match in matched_pairs(ours, theirs if other else None):
        earlier, later = sorted((int(places[here]), int(others[there])))
        found.append((earlier, later, match))
    return found


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
