"""Repairs a set: what is damaged is removed and made again, and nothing else.

Tables and card are put together again from the records, without the videos. A tar, or a record, is
made again by stage 1 from its videos, once it is known that they are still the same; tars are
deterministic, so the set is then the same to the byte.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from data_prep.builder import Build
from data_prep.integrity.check_set import CheckResult
from data_prep.progress import OnProgress
from data_prep.settings import PrepSettings
from data_prep.shards.manifest import Record, load_sources, read_record, record_name, save_sources
from data_prep.shards.plan import ShardPlan
from data_prep.shards.tables import Tables, remove_stale, tables_of
from data_prep.sources.probe import digest_of
from dynamonet import cluster
from dynamonet.command_line import default_config, read_yaml
from dynamonet.commands import command
from dynamonet.errors import UserError
from dynamonet.settings import flatten, validate
from dynamonet.shards import index
from dynamonet.shards.card import CARD, CARD_COPY, Card, readable_cards, write_card
from dynamonet.storage import Folder
from dynamonet.video.files import Source, find_sources

UNCHANGED = "Nothing was changed."
SHOWN = 10  # sources that an error names


@dataclass(frozen=True)
class Repair:
    """What a repair did."""

    rebuilt: list[str]  # tars that were made again
    same_content: bool  # the set holds what it held before


def repair(
    folder: Folder, result: CheckResult, source: str | None, on_progress: OnProgress
) -> Repair:
    """Repairs a set as far as its check found it damaged; Ray must be connected.

    Args:
        source: Where the videos are now; None = where the card says.

    Raises:
        UserError: the set cannot be repaired; the message says why. Nothing was changed then.
    """
    cards = list(readable_cards(folder))
    if result.blames(CARD):
        cards.reverse()  # the copy first
    if not cards:
        raise UserError(
            f"{folder.path}: neither {CARD} nor {CARD_COPY} can be read, so the videos and "
            f"settings of this set are unknown. {UNCHANGED}\nRun stage 1 again as it was run "
            f"before:\n  {command('shard')} --source VIDEOS --output "
            f"{shlex.quote(folder.path)} ..."
        )
    only_tables = result.knows_sources and result.shards == result.good.keys()
    # tables and card are made without the videos, wherever these are now
    settings = _settings(cards[0], folder, None if only_tables else source)
    build = Build.of(settings, on_progress)
    if only_tables:
        folder.create()  # says so if it cannot be written to
        _restore_tables(build, cards, result)
        return Repair([], same_content=True)
    return _rebuild_tars(build, cards, result)


def _restore_tables(build: Build, cards: list[Card], result: CheckResult) -> None:
    """Writes tables and card from the records, and looks for copies again if need be."""
    folder, filters = build.output, build.settings.filters
    records = {name: record for name in result.shards if (record := read_record(folder, name))}
    inspected = load_sources(folder) or []
    tables = card = None
    if result.duplicates is not None:
        tables = tables_of(records, inspected, result.duplicates, filters)
        card = _card_of(tables, cards)
    if tables is None or card is None:
        tables = tables_of(records, inspected, _find_copies(build, records), filters)
        card = _card_of(tables, cards)
    if card is None:
        digest = index.content_digest(tables.index)
        raise UserError(
            f"{folder.path}: the tars hold other samples (digest {digest}) than the card says "
            f"({cards[0].digest}), as after a run of stage 1 that was stopped. {UNCHANGED}\n"
            f"Run stage 1 again:\n  {_stage_one(build.settings)}"
        )
    tables.write(folder)
    write_card(folder, card)
    build.save_settings()
    remove_stale(folder, set(records), card)


def _card_of(tables: Tables, cards: list[Card]) -> Card | None:
    """Returns the card that speaks of these tables, if one does."""
    digest, num_copies = index.content_digest(tables.index), tables.duplicates.num_rows
    for card in cards:
        counted = card.counts.near_duplicates + card.counts.in_excluded_sets
        if (card.digest, counted) == (digest, num_copies):
            return card
    return None


def _find_copies(build: Build, records: dict[str, Record]) -> pa.Table:
    """Looks for copies again.

    Raises:
        UserError: an excluded set is no longer there.
    """
    try:
        return build.duplicates(records)[0]
    except UserError as error:
        raise UserError(
            f"{build.output.path}/{index.DUPLICATES} is damaged and cannot be made again: {error}\n"
            f"{UNCHANGED}"
        ) from None


def _rebuild_tars(build: Build, cards: list[Card], result: CheckResult) -> Repair:
    """Makes the damaged tars again; looks at everything before it changes anything."""
    folder, settings = build.output, build.settings
    inspected = load_sources(folder)
    try:
        if inspected is None:
            sources, _ = find_sources(build.videos)
            labelling = build.read_labels(sources)
            inspected = build.inspect(sources, labelling)
        else:
            labelling = build.read_labels([item.source for item in inspected])
        plans = build.plan(inspected, labelling)
    except UserError as error:
        raise UserError(
            f"the damaged tars cannot be made again: {error}\n{UNCHANGED} {_advice(settings)}"
        ) from None
    _check_plans(plans, result, settings)
    damaged = [plan for plan in plans if plan.name not in result.good]
    _check_sources(damaged, build)
    folder.create()
    save_sources(folder, inspected)
    build.save_settings()
    for plan in damaged:
        if folder.size(record_name(plan.name)) is not None:
            folder.delete(record_name(plan.name))  # so that stage 1 takes the tar for missing
    build.write_missing(plans)
    if result.blames(CARD):
        write_card(folder, cards[0])  # with its run, which stage 1 keeps
    records, copies = build.records(plans), result.duplicates
    if copies is None:
        copies = _find_copies(build, records)
    card = build.finish(records, inspected, labelling, copies, list(cards[0].excluded))
    same = card.digest in [before.digest for before in cards]
    return Repair([plan.name for plan in damaged], same)


def _check_plans(plans: list[ShardPlan], result: CheckResult, settings: PrepSettings) -> None:
    """Refuses to go on if stage 1 would make other tars than the set has."""
    planned = {plan.name: plan.digest for plan in plans}
    other = sorted(name for name, digest in result.good.items() if planned.get(name) != digest)
    other += sorted(result.shards - planned.keys() - set(other))
    if not result.blames(index.INDEX) and not result.blames(index.SHARDS):
        other += sorted(planned.keys() - result.shards)
    if other:
        raise UserError(
            f"stage 1 would now make different tars from those of this set, {len(other)} of "
            f"{len(planned)}, first {other[0]}: the videos, the lists or the settings are not "
            f"those of the set, or a run of stage 1 was stopped. {UNCHANGED}\n"
            f"To make the set from what is available now, run stage 1:\n  {_stage_one(settings)}"
        )


def _check_sources(plans: list[ShardPlan], build: Build) -> None:
    """Reads the videos of the damaged tars and refuses to go on if one is not what it was."""
    needed = {piece.source: piece.info.digest for plan in plans for piece in plan.pieces}
    trouble = []
    arguments = ((build.videos.path, source, digest) for source, digest in needed.items())
    for done, problem in enumerate(cluster.in_parallel(_changed, arguments), 1):
        build.on_progress("checking sources", done, len(needed))
        trouble += [problem] if problem else []
    if trouble:
        more = f"\n  ... and {len(trouble) - SHOWN} more" if len(trouble) > SHOWN else ""
        raise UserError(
            f"{len(trouble)} of {len(needed)} videos of the damaged tars are not what they were:\n"
            "  " + "\n  ".join(sorted(trouble)[:SHOWN]) + f"{more}\n{UNCHANGED} "
            f"{_advice(build.settings)}\nTo make the set from the present videos, run stage 1:"
            f"\n  {_stage_one(build.settings)}"
        )


def _changed(videos: str, source: Source, digest: str) -> str | None:
    """Says how a source differs from before; runs in a Ray task."""
    folder = Folder.at(videos)
    name = ascii(source.path)
    try:
        now = digest_of(folder, source)
    except FileNotFoundError:
        return f"{name}: missing"
    except OSError as error:
        return f"{name}: cannot be read: {error.strerror or error}"
    return None if now == digest else f"{name}: changed (BLAKE2b {now}, expected {digest})"


def _advice(settings: PrepSettings) -> str:
    return (
        f"Put the videos back below {settings.source}, or name the folder where they are now "
        "with --source."
    )


def _settings(card: Card, folder: Folder, source: str | None) -> PrepSettings:
    """Returns the settings that made a set.

    Raises:
        UserError: the card's settings are not those of this version.
    """
    values = {**card.settings, "output": folder.path}
    if source is not None:
        values["source"] = source
    return validate(PrepSettings, values, origin=f"{folder.path}/{CARD}")


def _stage_one(settings: PrepSettings) -> str:
    """Returns the command of stage 1 with these settings."""
    return " ".join([command("shard"), *_flags(settings)])


def _flags(settings: PrepSettings) -> Iterator[str]:
    name = default_config(settings.dataset, "data_prep")
    usual = validate(PrepSettings, read_yaml(name, "data_prep") if name else {}, origin=f"{name}")
    plain = flatten(usual)
    for key, value in flatten(settings).items():
        if value not in (None, ()) and (value != plain[key] or key == "dataset"):
            words = ",".join(value) if isinstance(value, tuple) else str(value)
            yield f"--{key} {shlex.quote(words)}"
