"""Stage 1 from a folder of videos to a finished set; one that was stopped is completed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

from data_prep.builder import Build
from data_prep.progress import OnProgress
from data_prep.reasons import Rejected
from data_prep.report.gallery import draw_galleries
from data_prep.settings import PrepSettings
from data_prep.shards.duplicates import open_excluded
from data_prep.shards.manifest import SETTINGS, load_sources, save_sources
from data_prep.sources.labels import Labelling
from data_prep.sources.probe import VideoInfo
from dynamonet.errors import UserError
from dynamonet.shards import index
from dynamonet.shards.card import CARD, Card, readable_cards, repair_command
from dynamonet.video.files import Source, find_sources, printable


@dataclass(frozen=True)
class PrepResult:
    """What a run of stage 1 found and did."""

    card: Card
    others: Counter[str]  # files that are no videos, by ending
    written: int  # tars made now
    kept: int  # tars that were there already
    labelling: Labelling | None
    pictures: dict[str, bytes]  # galleries of a set with new content: PNG by file name


def prepare(settings: PrepSettings, on_progress: OnProgress) -> PrepResult:
    """Makes or completes the shard set that the settings describe; Ray must be connected.

    Raises:
        UserError: nothing usable was found, the output was made with other settings or from other
            videos, or a folder cannot be read or written.
    """
    build = Build.of(settings, on_progress)
    output = build.output
    sources, others = find_sources(build.videos)
    if not sources:
        kinds = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
        where = build.videos.path
        raise UserError(f"--source {where}: no video found (other files: {kinds or 'none'})")
    labelling = build.read_labels(sources)
    open_excluded(settings)  # says so before hours of work if one is not there
    output.create()
    _check_settings(build)
    output.clear_incomplete()
    inspected = build.inspect(sources, labelling, _known_info(build))
    save_sources(output, inspected)
    plans = build.plan(inspected, labelling)
    written = build.write_missing(plans)
    records = build.records(plans)
    duplicates, excluded = build.duplicates(records)
    card = build.finish(records, inspected, labelling, duplicates, excluded)
    is_new = card.run is None
    pictures = draw_galleries(output, records, settings) if is_new else {}
    return PrepResult(card, others, written, len(plans) - written, labelling, pictures)


def _known_info(build: Build) -> dict[Source, VideoInfo]:
    """Returns what earlier runs read of the sources, less what is to be tried again."""
    output = build.output
    known = {item.source: item.info for item in load_sources(output) or [] if item.info}
    if build.settings.retry_quarantined and output.size(index.QUARANTINE) is not None:
        rows = map(Rejected.of, index.read_table(output, index.QUARANTINE).to_pylist())
        retried = {row.source for row in rows if not row.kind.is_lasting}
        known = {item: info for item, info in known.items() if printable(item.path) not in retried}
    return known


def _check_settings(build: Build) -> None:
    """Refuses an output that other settings made; notes the settings of a fresh one."""
    output, content = build.output, build.settings.content()
    remedy = f"Repair the set with\n  {repair_command(output)}"
    for card in readable_cards(output):
        card.check_current(output)
    if output.size(SETTINGS) is None:
        if output.size(CARD) is not None:
            raise UserError(
                f"{output.path}: has a card but no {SETTINGS}. Choose another --output", remedy
            )
        build.save_settings()
        return
    try:
        before = json.loads(output.read(SETTINGS))
    except ValueError as error:
        raise UserError(f"{output.path}/{SETTINGS}: damaged: {error}", remedy) from None
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
