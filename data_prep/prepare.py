"""Stage 1 on the driver: list, inspect, plan, build, put together. The work itself is Ray tasks."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.assemble import assemble, reasons
from data_prep.duplicates import about, find_duplicates, open_excluded
from data_prep.gallery import draw_galleries
from data_prep.labels import Labelling, read_labels
from data_prep.plan import ShardPlan, plan_shards
from data_prep.records import (
    SETTINGS,
    Inspected,
    OnProgress,
    Record,
    readable_cards,
    recall,
    remember,
)
from data_prep.settings import PrepSettings
from data_prep.sources import SAME_CONTENT, Facts, Rejected, inspect
from data_prep.write import build_shard, done_record, worth_retrying
from dynamonet import cluster
from dynamonet.errors import UserError
from dynamonet.killable import Limits
from dynamonet.shards import index
from dynamonet.storage import Folder, is_uri
from dynamonet.video.files import Source, find_sources, printable

INSPECT_BATCH = 32  # sources a task inspects: enough to hide the cost of a task


@dataclass(frozen=True)
class Report:
    """What a run of stage 1 found and did."""

    card: dict[str, Any]
    found: int  # videos below the source folder
    others: Counter[str]  # files that are no videos, by ending
    built: int  # tars made now
    kept: int  # tars that were there already
    labelling: Labelling | None
    pictures: dict[str, bytes]  # galleries of a set with new content: PNG by file name


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
    labelling = labels_of(sources, source, settings)
    excluded = open_excluded(settings)
    output.create()
    _check_settings(output, settings)
    output.clear_incomplete()
    known = known_facts(output, again=settings.retry_quarantined)
    inspected = inspect_all(sources, source, labelling, known, settings, on_progress)
    remember(output, inspected)
    plans = plans_of(inspected, labelling, settings)
    built = build_missing(plans, source, output, settings, on_progress)
    records = records_of(plans, output)
    duplicates = find_duplicates(output, records, excluded, settings, on_progress)
    known_sets = [about(each) for each in excluded]
    card = assemble(output, records, inspected, settings, source, labelling, duplicates, known_sets)
    is_new = "run" not in card
    pictures = draw_galleries(output, source, sources, settings) if is_new else {}
    return Report(card, len(sources), others, built, len(plans) - built, labelling, pictures)


def labels_of(sources: list[Source], source: Folder, settings: PrepSettings) -> Labelling | None:
    """Reads the labels of a labelled set; None for unlabelled videos.

    Raises:
        UserError: the lists are missing or damaged.
    """
    if settings.dataset is None:
        return None
    if is_uri(source.path) and settings.lists is None:
        raise UserError("--lists: name the folder or file of lists when --source is remote")
    paths = [item.path for item in sources]
    root = Path(source.path)
    return read_labels(settings.dataset, paths, root, settings.lists, settings.test_share)


def known_facts(output: Folder, *, again: bool) -> dict[Source, Facts]:
    """Returns what earlier runs read of the sources.

    Args:
        again: Leave out what is quarantined and worth another try, so that it is read anew.
    """
    known = {item.source: item.facts for item in recall(output) or [] if item.facts}
    if again and output.size(index.QUARANTINE) is not None:
        rows = index.read_table(output, index.QUARANTINE).to_pylist()
        bad = {row["source"] for row in rows if worth_retrying(row)}
        known = {source: f for source, f in known.items() if printable(source.path) not in bad}
    return known


def inspect_all(
    sources: list[Source],
    source: Folder,
    labelling: Labelling | None,
    known: dict[Source, Facts],
    settings: PrepSettings,
    on_progress: OnProgress,
) -> list[Inspected]:
    """Reads the headers of all sources, less those whose path, size and time of change are known.

    A source that could not be used is read again each time.
    """
    results: dict[Source, Facts | Rejected] = {s: known[s] for s in sources if s in known}
    fresh = [item for item in sources if item not in results]
    groups = (fresh[i : i + INSPECT_BATCH] for i in range(0, len(fresh), INSPECT_BATCH))
    arguments = ((source.path, group, settings.min_side_px, settings.limits) for group in groups)
    for batch in cluster.in_parallel(_inspect_batch, arguments):
        results |= batch
        on_progress("reading headers", len(results), len(sources))
    unlisted = set(labelling.unlisted) if labelling else set()
    inspected = []
    for item in sources:
        found = results[item]
        if isinstance(found, Rejected):
            inspected.append(Inspected(item, None, found.reason))
        else:
            reason = "in the folder, but in no list" if item.path in unlisted else None
            inspected.append(Inspected(item, found, reason))
    return same_content(inspected, labelling, settings)


def same_content(
    inspected: list[Inspected], labelling: Labelling | None, settings: PrepSettings
) -> list[Inspected]:
    """Marks files of the same content but the first; in official sets all that is listed stays."""
    if settings.dataset not in (None, "folder"):
        return inspected
    labels = labelling.labels if labelling else {}
    first: dict[str, str] = {}
    marked = []
    for item in inspected:
        if item.facts and item.reason is None:
            path = item.source.path
            twin = first.setdefault(item.facts.digest, path)
            if twin != path:
                reason = f"{SAME_CONTENT} {printable(twin)}"
                if labels.get(twin) != labels.get(path):
                    reason += ", which has another label, side or group"
                item = replace(item, reason=reason)
        marked.append(item)
    return marked


def plans_of(
    inspected: list[Inspected], labelling: Labelling | None, settings: PrepSettings
) -> list[ShardPlan]:
    """Assigns the usable sources to tars.

    Raises:
        UserError: there is no usable source.
    """
    usable = [(item.source, item.facts) for item in inspected if item.facts and not item.reason]
    if not usable:
        lost = [Rejected(item.source.path, item.reason or "") for item in inspected]
        raise UserError(f"no usable video among {len(inspected)}:\n  {reasons(lost)}")
    labels = labelling.labels if labelling else {}
    return plan_shards(usable, labels, labelling.classes if labelling else [], settings)


def build_missing(
    plans: list[ShardPlan],
    source: Folder,
    output: Folder,
    settings: PrepSettings,
    on_progress: OnProgress,
) -> int:
    """Builds the tars that are not there whole, or hold what is to be tried again.

    Returns:
        How many were built.
    """
    todo = [plan for plan in plans if _is_due(done_record(output, plan), settings)]
    seconds = {plan.name: plan.seconds for plan in todo}
    total, done = sum(seconds.values()), 0.0
    if todo:
        on_progress("writing shards", done, total)  # so that the rate counts from here
    # the longest first, so that no core is left with a long tar at the end
    todo.sort(key=lambda plan: -plan.seconds)
    arguments = ((plan, source.path, output.path, settings) for plan in todo)
    for name in cluster.in_parallel(build_shard, arguments):
        done += seconds[name]
        on_progress("writing shards", done, total)
    return len(todo)


def _is_due(record: Record | None, settings: PrepSettings) -> bool:
    if record is None:
        return True
    quarantine = record.quarantine.to_pylist() if settings.retry_quarantined else []
    return any(worth_retrying(row) for row in quarantine)


def _check_settings(output: Folder, settings: PrepSettings) -> None:
    """Refuses an output that other settings made; notes the settings of a fresh one."""
    content = settings.content()
    for card in readable_cards(output):
        index.check_current(output, card)
    if output.size(SETTINGS) is None:
        if output.size(index.CARD) is not None:
            raise UserError(
                f"{output.path}: has a card but no {SETTINGS}; choose another --output, or repair "
                f"this one with\n  {index.repair_command(output)}"
            )
        write_settings(output, settings)
        return
    try:
        before = json.loads(output.read(SETTINGS))
    except ValueError as error:
        raise UserError(
            f"{output.path}/{SETTINGS}: damaged: {error}; repair the set with\n"
            f"  {index.repair_command(output)}"
        ) from None
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


def write_settings(output: Folder, settings: PrepSettings) -> None:
    """Notes the settings that decide what the tars hold."""
    output.write(SETTINGS, json.dumps(settings.content(), indent=2).encode())


def _inspect_batch(
    source: str, sources: list[Source], min_side_px: int, limits: Limits
) -> dict[Source, Facts | Rejected]:
    folder = Folder.at(source)
    return {item: inspect(folder, item, min_side_px, limits) for item in sources}


def records_of(plans: list[ShardPlan], output: Folder) -> dict[str, Record]:
    """Reads the records of all tars.

    Raises:
        UserError: a tar is not done.
    """
    records = {}
    for plan in plans:
        record = done_record(output, plan)
        if record is None:
            raise UserError(f"{output.path}/{plan.name} changed while the set was being made")
        records[plan.name] = record
    return records
