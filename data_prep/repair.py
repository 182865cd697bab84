"""Rebuilds what is damaged in a set, and nothing else.

Tables and card are put together again from the records, without the videos. A tar, or a record, is
made again from its videos by stage 1, once it is known that they are still the same.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_prep.assemble import Tables, assemble, remove_stale, tables_of
from data_prep.checks import Findings
from data_prep.duplicates import find_duplicates, open_excluded
from data_prep.plan import ShardPlan
from data_prep.prepare import (
    build_missing,
    inspect_all,
    labels_of,
    plans_of,
    records_of,
    write_settings,
)
from data_prep.records import (
    OnProgress,
    Record,
    read_record,
    readable_cards,
    recall,
    record_name,
    remember,
)
from data_prep.settings import PrepSettings
from data_prep.sources import digest_of
from dynamonet import cluster
from dynamonet.errors import UserError
from dynamonet.settings import default_config, flatten, read_yaml, validate
from dynamonet.shards import index
from dynamonet.storage import Folder
from dynamonet.video.files import Source, find_sources

UNCHANGED = "Nothing was changed."
SHOWN = 10  # sources that an error names


@dataclass(frozen=True)
class Repair:
    """What a repair did."""

    rebuilt: list[str]  # tars that were made again
    same_content: bool  # the set holds what it held before


def repair(folder: Folder, found: Findings, source: str | None, on_progress: OnProgress) -> Repair:
    """Repairs a set as far as its check found it damaged; Ray must be connected.

    Args:
        source: Where the videos are now; None = where the card says.

    Raises:
        UserError: the set cannot be repaired; the message says why. Nothing was changed then.
    """
    cards = list(readable_cards(folder))
    if found.blames(index.CARD):
        cards.reverse()  # the copy first
    if not cards:
        raise UserError(
            f"{folder.path}: neither {index.CARD} nor {index.CARD_COPY} can be read, so the videos "
            f"and settings of this set are not known. {UNCHANGED}\nRun stage 1 again as it was run "
            f"before:\n  python data_prep/shard.py --source VIDEOS --output "
            f"{shlex.quote(folder.path)} ..."
        )
    if found.knows_sources and found.shards == found.good.keys():
        folder.create()  # says so if it cannot be written to
        _reassemble(folder, cards, found, on_progress)
        return Repair([], same_content=True)
    return _rebuild(folder, cards, found, source, on_progress)


def _reassemble(
    folder: Folder, cards: list[dict[str, Any]], found: Findings, on_progress: OnProgress
) -> None:
    """Writes tables and card from the records, and looks for copies again if need be."""
    records = {name: record for name in found.shards if (record := read_record(folder, name))}
    inspected = recall(folder) or []
    tables = card = None
    if found.duplicates is not None:
        tables = tables_of(records, inspected, found.duplicates)
        card = _card_of(tables, cards)
    if tables is None or card is None:
        copies = _copies(folder, records, _settings(cards[0], folder, None), on_progress)
        tables = tables_of(records, inspected, copies)
        card = _card_of(tables, cards)
    if card is None:
        digest = index.content_digest(tables.index)
        raise UserError(
            f"{folder.path}: the tars hold other samples (digest {digest}) than the card says "
            f"({cards[0].get('digest')}), as after a run of stage 1 that was stopped. {UNCHANGED}\n"
            f"Run stage 1 again:\n  {_stage_one(_settings(cards[0], folder, None))}"
        )
    settings = _settings(card, folder, None)
    tables.write(folder)
    index.write_card(folder, card)
    write_settings(folder, settings)
    remove_stale(folder, set(records))


def _card_of(tables: Tables, cards: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the card that speaks of these tables, if one does."""
    digest, num_copies = index.content_digest(tables.index), tables.duplicates.num_rows
    for card in cards:
        counts = card.get("counts", {})
        said = counts.get("near_duplicates", 0) + counts.get("in_excluded_sets", 0)
        if (card.get("digest"), said) == (digest, num_copies):
            return card
    return None


def _copies(
    folder: Folder, records: dict[str, Record], settings: PrepSettings, on_progress: OnProgress
) -> pa.Table:
    """Looks for copies again.

    Raises:
        UserError: an excluded set is no longer there.
    """
    try:
        excluded = open_excluded(settings)
    except UserError as error:
        raise UserError(
            f"{folder.path}/{index.DUPLICATES} is damaged and cannot be made again: {error}\n"
            f"{UNCHANGED}"
        ) from None
    return find_duplicates(folder, records, excluded, settings, on_progress)


def _rebuild(
    folder: Folder,
    cards: list[dict[str, Any]],
    found: Findings,
    source: str | None,
    on_progress: OnProgress,
) -> Repair:
    """Makes the damaged tars again; looks at everything before it changes anything."""
    settings = _settings(cards[0], folder, source)
    videos = Folder.at(settings.source or "")
    inspected = recall(folder)
    try:
        if inspected is None:
            sources, _ = find_sources(videos)
            labelling = labels_of(sources, videos, settings)
            inspected = inspect_all(sources, videos, labelling, {}, settings, on_progress)
        else:
            labelling = labels_of([item.source for item in inspected], videos, settings)
        plans = plans_of(inspected, labelling, settings)
    except UserError as error:
        raise UserError(
            f"the damaged tars cannot be made again: {error}\n{UNCHANGED} {_advice(settings)}"
        ) from None
    _check_plans(plans, found, settings)
    damaged = [plan for plan in plans if plan.name not in found.good]
    _check_sources(damaged, videos, settings, on_progress)
    folder.create()
    remember(folder, inspected)
    write_settings(folder, settings)
    for plan in damaged:
        if folder.size(record_name(plan.name)) is not None:
            folder.delete(record_name(plan.name))  # so that stage 1 takes the tar for missing
    build_missing(plans, videos, folder, settings, on_progress)
    if found.blames(index.CARD):
        index.write_card(folder, cards[0])  # with its run, which stage 1 keeps
    records, copies = records_of(plans, folder), found.duplicates
    if copies is None:
        copies = _copies(folder, records, settings, on_progress)
    excluded = cards[0].get("excluded", [])
    card = assemble(folder, records, inspected, settings, videos, labelling, copies, excluded)
    same = card["digest"] in [before.get("digest") for before in cards]
    return Repair([plan.name for plan in damaged], same)


def _check_plans(plans: list[ShardPlan], found: Findings, settings: PrepSettings) -> None:
    """Refuses to go on if stage 1 would make other tars than the set has."""
    planned = {plan.name: plan.digest for plan in plans}
    other = sorted(name for name, digest in found.good.items() if planned.get(name) != digest)
    other += sorted(found.shards - planned.keys() - set(other))
    if not found.blames(index.INDEX) and not found.blames(index.SHARDS):
        other += sorted(planned.keys() - found.shards)
    if other:
        raise UserError(
            f"stage 1 would now make other tars than this set has, {len(other)} of "
            f"{len(planned)}, first {other[0]}: the videos, the lists or the settings are not "
            f"those of the set, or a run of stage 1 was stopped. {UNCHANGED}\n"
            f"To make the set from what is there now, run stage 1:\n  {_stage_one(settings)}"
        )


def _check_sources(
    plans: list[ShardPlan], videos: Folder, settings: PrepSettings, on_progress: OnProgress
) -> None:
    """Reads the videos of the damaged tars and refuses to go on if one is not what it was."""
    needed = {piece.source: piece.facts.digest for plan in plans for piece in plan.pieces}
    trouble = []
    arguments = ((videos.path, source, digest) for source, digest in needed.items())
    for done, problem in enumerate(cluster.in_parallel(_changed, arguments), 1):
        on_progress("checking sources", done, len(needed))
        trouble += [problem] if problem else []
    if trouble:
        more = f"\n  ... and {len(trouble) - SHOWN} more" if len(trouble) > SHOWN else ""
        raise UserError(
            f"{len(trouble)} of {len(needed)} videos of the damaged tars are not what they were:\n"
            "  " + "\n  ".join(sorted(trouble)[:SHOWN]) + f"{more}\n{UNCHANGED} "
            f"{_advice(settings)}\nTo make the set from the videos that are there now, run stage 1:"
            f"\n  {_stage_one(settings)}"
        )


def _changed(videos: str, source: Source, digest: str) -> str | None:
    """Says how a source differs from before; runs in a Ray task."""
    folder = Folder.at(videos)
    name = ascii(source.path)
    try:
        found = digest_of(folder, source)
    except FileNotFoundError:
        return f"{name}: missing"
    except OSError as error:
        return f"{name}: cannot be read: {error.strerror or error}"
    return None if found == digest else f"{name}: changed (BLAKE2b {found}, expected {digest})"


def _advice(settings: PrepSettings) -> str:
    return (
        f"Put the videos back below {settings.source}, or name the folder where they are now "
        "with --source."
    )


def _settings(card: dict[str, Any], folder: Folder, source: str | None) -> PrepSettings:
    """Returns the settings that made a set.

    Raises:
        UserError: the card's settings are not those of this version.
    """
    values = {**card.get("settings", {}), "output": folder.path}
    if source is not None:
        values["source"] = source
    return validate(PrepSettings, values, origin=f"{folder.path}/{index.CARD}")


def _stage_one(settings: PrepSettings) -> str:
    """Returns the command of stage 1 with these settings."""
    return " ".join(["python data_prep/shard.py", *_flags(settings)])


def _flags(settings: PrepSettings) -> Iterator[str]:
    name = default_config("data_prep", {"dataset": settings.dataset})
    usual = validate(PrepSettings, read_yaml(name, "data_prep") if name else {}, origin=f"{name}")
    plain = flatten(usual)
    for key, value in flatten(settings).items():
        if value not in (None, ()) and (value != plain[key] or key == "dataset"):
            words = ",".join(value) if isinstance(value, tuple) else str(value)
            yield f"--{key} {shlex.quote(words)}"
