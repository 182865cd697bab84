"""Stage 1 on the driver: list, inspect, plan, build, put together. The work itself is Ray tasks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.labels import Labelling, read_labels
from data_prep.plan import ShardPlan, plan_shards
from data_prep.settings import PrepSettings
from data_prep.sources import Facts, Rejected, inspect
from data_prep.write import build_shard, read_record, record_name
from dynamonet import __version__, cluster
from dynamonet.errors import UserError
from dynamonet.shards import index
from dynamonet.storage import Folder, is_uri
from dynamonet.video.files import Source, find_sources, printable

SOURCES = f"{index.RECORDS}/sources.parquet"  # headers and hashes, so that files are read once
SETTINGS = f"{index.RECORDS}/settings.json"
INSPECT_BATCH = 32  # sources a task inspects: enough to hide the cost of a task

OnProgress = Callable[[str, float, float], None]  # (what, done, total)


@dataclass(frozen=True)
class Report:
    """What a run of stage 1 found and did."""

    card: dict[str, Any]
    found: int  # videos below the source folder
    others: Counter[str]  # files that are no videos, by ending
    built: int  # tars made now
    kept: int  # tars that were there already
    labelling: Labelling | None


def prepare(settings: PrepSettings, on_progress: OnProgress) -> Report:
    """Makes or completes the shard set that the settings describe; Ray must be connected.

    Raises:
        UserError: nothing usable was found, the output was made with other settings or from other
            videos, or a folder cannot be read or written.
    """
    source, output = Folder.at(settings.source or ""), Folder.at(settings.output_path())
    sources, others = find_sources(source)
    if not sources:
        kinds = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
        raise UserError(f"--source {source.path}: no video found (other files: {kinds or 'none'})")
    labelling = _labels(settings, source, sources)
    output.create()
    _check_settings(output, settings)
    output.clear_incomplete()
    usable, rejected = _inspect_all(source, output, sources, settings, on_progress)
    labels = labelling.labels if labelling else {}
    if labelling:
        usable = [(s, f) for s, f in usable if s.path in labels]
        reason = "in the folder, but in no list"
        rejected += [Rejected(path, reason) for path in labelling.unlisted]
    if not usable:
        raise UserError(f"no usable video among {len(sources)}:\n  {_reasons(rejected)}")
    classes = labelling.classes if labelling else []
    plans = plan_shards(usable, labels, classes, settings)
    built = _build_missing(plans, source, output, settings, on_progress)
    card = _assemble(plans, output, settings, source, labelling, rejected, len(sources))
    return Report(card, len(sources), others, built, len(plans) - built, labelling)


def _labels(settings: PrepSettings, source: Folder, sources: list[Source]) -> Labelling | None:
    if settings.dataset is None:
        return None
    if is_uri(source.path) and settings.lists is None:
        raise UserError("--lists: name the folder or file of lists when --source is remote")
    paths = [item.path for item in sources]
    root = Path(source.path)
    return read_labels(settings.dataset, paths, root, settings.lists, settings.test_share)


def _check_settings(output: Folder, settings: PrepSettings) -> None:
    """Refuses an output that other settings made; notes the settings of a fresh one."""
    content = settings.content()
    if output.size(SETTINGS) is None:
        if output.size(index.CARD) is not None:
            raise UserError(f"{output.path}: has a card but no {SETTINGS}; choose another --output")
        output.write(SETTINGS, json.dumps(content, indent=2).encode())
        return
    before = json.loads(output.read(SETTINGS))
    if before != content:
        changed = [
            f"{key}: {before.get(key)!r} there, {content[key]!r} now"
            for key in content
            if before.get(key) != content[key]
        ]
        raise UserError(
            f"{output.path}: was made with other settings:\n  " + "\n  ".join(changed) + "\n"
            "Choose another --output, or the same settings"
        )


def _inspect_all(
    source: Folder,
    output: Folder,
    sources: list[Source],
    settings: PrepSettings,
    on_progress: OnProgress,
) -> tuple[list[tuple[Source, Facts]], list[Rejected]]:
    """Returns the readable sources with their facts, and the rest with reasons.

    A source whose path, size and time of change are known from before is not read again.
    """
    known = _known_facts(output)
    results: dict[Source, Facts | Rejected] = {}
    for item in sources:
        facts = known.get((printable(item.path), item.size, item.mtime_ns))
        if facts is not None:
            results[item] = facts
    fresh = [item for item in sources if item not in results]
    groups = (fresh[i : i + INSPECT_BATCH] for i in range(0, len(fresh), INSPECT_BATCH))
    arguments = ((source.path, group, settings.min_side_px) for group in groups)
    for batch in cluster.in_parallel(_inspect_batch, arguments):
        results |= batch
        on_progress("reading headers", len(results), len(sources))
    if fresh:
        _remember(output, results)
    usable = [(s, f) for s in sources if isinstance(f := results[s], Facts)]
    return usable, [f for s in sources if isinstance(f := results[s], Rejected)]


def _inspect_batch(
    source: str, sources: list[Source], min_side_px: int
) -> dict[Source, Facts | Rejected]:
    folder = Folder.at(source)
    return {item: inspect(folder, item, min_side_px) for item in sources}


def _known_facts(output: Folder) -> dict[tuple[str, int, int], Facts]:
    if output.size(SOURCES) is None:
        return {}
    rows = index.read_table(output, SOURCES).to_pylist()
    return {
        (row["path"], row["size"], row["mtime_ns"]): Facts(
            row["digest"], row["seconds"], Fraction(row["fps"]), row["width"], row["height"]
        )
        for row in rows
    }


def _remember(output: Folder, results: dict[Source, Facts | Rejected]) -> None:
    rows = [
        {
            "path": printable(source.path),
            "size": source.size,
            "mtime_ns": source.mtime_ns,
            "digest": facts.digest,
            "seconds": facts.seconds,
            "fps": str(facts.fps),
            "width": facts.width,
            "height": facts.height,
        }
        for source, facts in results.items()
        if isinstance(facts, Facts)
    ]
    if rows:
        index.write_table(output, SOURCES, pa.Table.from_pylist(rows))


def _build_missing(
    plans: list[ShardPlan],
    source: Folder,
    output: Folder,
    settings: PrepSettings,
    on_progress: OnProgress,
) -> int:
    """Builds the tars that are not there whole; returns how many."""
    todo = [plan for plan in plans if read_record(output, plan) is None]
    seconds = {plan.name: plan.seconds for plan in todo}
    total, done = sum(seconds.values()), 0.0
    # the longest first, so that no core is left with a long tar at the end
    todo.sort(key=lambda plan: -plan.seconds)
    arguments = ((plan, source.path, output.path, settings) for plan in todo)
    for name in cluster.in_parallel(build_shard, arguments):
        done += seconds[name]
        on_progress("writing shards", done, total)
    return len(todo)


def _assemble(
    plans: list[ShardPlan],
    output: Folder,
    settings: PrepSettings,
    source: Folder,
    labelling: Labelling | None,
    rejected: list[Rejected],
    found: int,
) -> dict[str, Any]:
    """Puts the records together into index, tables and card; removes tars of older plans."""
    tables, quarantines, shards = [], [], []
    for plan in plans:
        record = read_record(output, plan)
        if record is None:
            raise UserError(f"{output.path}/{plan.name} changed while the set was being made")
        table, quarantine, size = record
        tables.append(table)
        quarantines.append(quarantine)
        seconds = sum(r["end_seconds"] - r["start_seconds"] for r in table.to_pylist())
        shards.append(
            {"shard": plan.name, "bytes": size, "samples": table.num_rows, "seconds": seconds}
        )
    rows = pa.concat_tables(tables)
    early = [{**vars(item), "source": printable(item.source)} for item in rejected]
    quarantine = pa.concat_tables(
        [pa.Table.from_pylist(early, index.QUARANTINE_SCHEMA), *quarantines]
    ).sort_by([("source", "ascending"), ("start_seconds", "ascending")])
    if not rows.num_rows:
        reasons = [Rejected(row["source"], row["reason"]) for row in quarantine.to_pylist()]
        raise UserError(f"no usable segment in {found} videos:\n  {_reasons(reasons)}")
    index.write_table(output, index.INDEX, rows)
    index.write_table(output, index.SHARDS, pa.Table.from_pylist(shards, index.SHARDS_SCHEMA))
    index.write_table(output, index.QUARANTINE, quarantine)
    card = _card(rows, shards, quarantine, settings, source, labelling, found)
    before = index.read_card(output) if output.size(index.CARD) is not None else {}
    if before.get("digest") == card["digest"] and "run" in before:
        card["run"] = before["run"]  # the same content keeps the run that made it
    index.write_card(output, card)
    _remove_stale(output, plans)
    output.clear_incomplete()
    return card


def _card(
    rows: pa.Table,
    shards: list[dict[str, Any]],
    quarantine: pa.Table,
    settings: PrepSettings,
    source: Folder,
    labelling: Labelling | None,
    found: int,
) -> dict[str, Any]:
    taken = set(rows["source"].to_pylist())
    lost = {r["source"]: r["reason"] for r in quarantine.to_pylist() if r["source"] not in taken}
    parts = [r["reason"] for r in quarantine.to_pylist() if r["source"] in taken]
    return {
        "format": index.FORMAT,
        "version": index.FORMAT_VERSION,
        "digest": index.content_digest(rows),
        "made_with": __version__,
        "settings": {**settings.content(), "source": source.path},
        "classes": labelling.classes if labelling else [],
        "num_splits": labelling.num_splits if labelling else 0,
        "counts": {
            "videos_found": found,
            "videos_taken": len(taken),
            "samples": rows.num_rows,
            "seconds": round(sum(shard["seconds"] for shard in shards), 3),
            "bytes": sum(shard["bytes"] for shard in shards),
            "shards": len(shards),
            "listed_but_missing": len(labelling.missing) if labelling else 0,
            "found_but_unlisted": len(labelling.unlisted) if labelling else 0,
            "videos_quarantined": dict(Counter(_kind(reason) for reason in lost.values())),
            "stretches_quarantined": dict(Counter(_kind(reason) for reason in parts)),
        },
    }


def _remove_stale(output: Folder, plans: list[ShardPlan]) -> None:
    wanted = {plan.name for plan in plans} | {record_name(plan) for plan in plans}
    for name in [*output.names(), *output.names(index.RECORDS)]:
        stem = name.removeprefix(f"{index.RECORDS}/")
        if stem.startswith("shard-") and name not in wanted:
            output.delete(name)


def _kind(reason: str) -> str:
    """Returns the part of a reason that is the same for all videos with this trouble."""
    return reason.split(": ")[0] if reason.startswith(("too short", "too small")) else reason


def _reasons(rejected: list[Rejected]) -> str:
    counts = Counter(_kind(item.reason) for item in rejected)
    return "\n  ".join(f"{count} x {reason}" for reason, count in counts.most_common(8))


def quarantine_counts(card: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yields (what, reason, count) of everything that a set left out."""
    for what in ("videos", "stretches"):
        for reason, count in card["counts"][f"{what}_quarantined"].items():
            yield what, reason, count
