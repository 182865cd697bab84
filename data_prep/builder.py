"""The steps of stage 1 on the driver: inspect, plan, write, finish. The work is Ray tasks."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from data_prep.progress import OnProgress
from data_prep.reasons import Rejected, RejectReason
from data_prep.settings import PrepSettings
from data_prep.shards.duplicates import describe_excluded, find_duplicates, open_excluded
from data_prep.shards.manifest import SETTINGS, Inspected, Record, shard_place
from data_prep.shards.pieces import OlderTars, encode_piece
from data_prep.shards.plan import ShardPlan, plan_shards
from data_prep.shards.tables import make_card, reasons, remove_stale, tables_of
from data_prep.shards.writer import build_shard, done_record
from data_prep.sources.labels import UCF_GROUP, Labelling, read_labels
from data_prep.sources.probe import VideoInfo, inspect
from dynamonet import cluster
from dynamonet.child_process import Limits
from dynamonet.cluster import TwoSteps
from dynamonet.errors import UserError
from dynamonet.shards.card import (
    Card,
    ExcludedSet,
    readable_cards,
    write_card,
)
from dynamonet.storage import Folder, is_uri
from dynamonet.video.files import Source, printable

INSPECT_BATCH = 32  # sources a task inspects: enough to hide the cost of a task


@dataclass(frozen=True)
class Build:
    """The steps from a folder of videos to a shard set, for making one and for repairing it.

    Ray must be connected.
    """

    settings: PrepSettings
    videos: Folder
    output: Folder
    on_progress: OnProgress

    @classmethod
    def of(cls, settings: PrepSettings, on_progress: OnProgress) -> Build:
        """Opens the folders that the settings name."""
        videos = Folder.at(settings.source or "")
        return cls(settings, videos, Folder.at(settings.output_path()), on_progress)

    def read_labels(self, sources: list[Source]) -> Labelling | None:
        """Reads the labels of a labelled set; None for unlabelled videos.

        Raises:
            UserError: the lists are missing or damaged.
        """
        settings = self.settings
        if settings.dataset is None:
            return None
        if is_uri(self.videos.path) and settings.lists is None:
            raise UserError("--lists: name the folder or file of lists when --source is remote")
        paths, root = [item.path for item in sources], Path(self.videos.path)
        return read_labels(
            settings.dataset,
            paths,
            root,
            settings.lists,
            settings.test_share,
            settings.group_pattern or UCF_GROUP,
        )

    def inspect(
        self,
        sources: list[Source],
        labelling: Labelling | None,
        known: dict[Source, VideoInfo] | None = None,
    ) -> list[Inspected]:
        """Reads the headers of all sources, less those whose path, size and time are known.

        A source that could not be used is read again each time.
        """
        known = known or {}
        results: dict[Source, VideoInfo | Rejected] = {s: known[s] for s in sources if s in known}
        fresh = [item for item in sources if item not in results]
        groups = (fresh[i : i + INSPECT_BATCH] for i in range(0, len(fresh), INSPECT_BATCH))
        settings, videos = self.settings, self.videos.path
        arguments = ((videos, group, settings.min_side_px, settings.limits) for group in groups)
        for batch in cluster.in_parallel(_inspect_batch, arguments):
            results |= batch
            self.on_progress("reading headers", len(results), len(sources))
        inspected = [_inspected(item, results[item]) for item in sources]
        if labelling:
            inspected = _without_unlisted(inspected, set(labelling.unlisted))
        if settings.dataset in (None, "folder"):  # in official sets all that is listed stays
            inspected = _without_same_content(inspected, labelling)
        return inspected

    def plan(self, inspected: list[Inspected], labelling: Labelling | None) -> list[ShardPlan]:
        """Assigns the usable sources to tars.

        Raises:
            UserError: there is no usable source.
        """
        usable = [(item.source, item.info) for item in inspected if item.info and not item.rejected]
        if not usable:
            lost = [item.rejected for item in inspected if item.rejected]
            raise UserError(f"no usable video among {len(inspected)}:\n  {reasons(lost)}")
        labels = labelling.labels if labelling else {}
        return plan_shards(usable, labels, labelling.classes if labelling else [], self.settings)

    def write_missing(self, plans: list[ShardPlan]) -> int:
        """Writes the tars that are not there whole, or hold what is to be tried again.

        Returns:
            How many were written.
        """
        missing = [plan for plan in plans if self._is_due(done_record(self.output, plan))]
        # the longest piece first, so that no core is left with one at the end
        missing.sort(key=lambda plan: -max(piece.seconds for piece in plan.pieces))
        total, done = sum(plan.seconds for plan in missing), 0.0
        if missing:
            self.on_progress("writing shards", done, total)  # so that the rate counts from here
        totals = sorted({place[1] for name in self.output.names() if (place := shard_place(name))})
        work = (self._work(plan, totals) for plan in missing)
        for tar, place, _ in cluster.in_two_steps(encode_piece, build_shard, work):
            plan = tar.whole[0]
            kept = plan.seconds - sum(plan.pieces[n].seconds for n in tar.parts)
            done += kept if place is None else plan.pieces[place].seconds
            self.on_progress("writing shards", done, total)
        return len(missing)

    def _work(self, plan: ShardPlan, totals: list[int]) -> TwoSteps[int]:
        """Returns the work for a tar: its pieces, less those that are finished in older tars."""
        source, output, settings = self.videos.path, self.output.path, self.settings
        older = OlderTars(self.output, plan, totals, settings)
        fresh = [n for n, piece in enumerate(plan.pieces) if piece not in older]
        fresh.sort(key=lambda n: -plan.pieces[n].seconds)
        parts = {n: (plan.pieces[n], source, settings) for n in fresh}
        return TwoSteps(parts, (plan, source, output, settings, totals))

    def records(self, plans: list[ShardPlan]) -> dict[str, Record]:
        """Reads the records of all tars.

        Raises:
            UserError: a tar is not done.
        """
        records = {}
        for plan in plans:
            record = done_record(self.output, plan)
            if record is None:
                raise UserError(f"{self.output.path}/{plan.name} changed while the set was made")
            records[plan.name] = record
        return records

    def duplicates(self, records: dict[str, Record]) -> tuple[pa.Table, list[ExcludedSet]]:
        """Finds copies among the segments, and of segments of the excluded sets.

        Raises:
            UserError: an excluded set cannot be opened or read.
        """
        excluded = open_excluded(self.settings)
        rows = {name: record.rows for name, record in records.items()}
        table = find_duplicates(self.output, rows, excluded, self.settings, self.on_progress)
        return table, [describe_excluded(each) for each in excluded]

    def finish(
        self,
        records: dict[str, Record],
        inspected: list[Inspected],
        labelling: Labelling | None,
        duplicates: pa.Table,
        excluded: list[ExcludedSet],
    ) -> Card:
        """Writes index, tables and card, and removes tars of older plans.

        Raises:
            UserError: no video gave a segment.
        """
        tables = tables_of(records, inspected, duplicates, self.settings.filters)
        card = make_card(tables, inspected, self.settings, labelling, excluded)
        for before in readable_cards(self.output):
            filters = before.settings.get("filters")
            # the same content, chosen alike, keeps what made it
            if (before.digest, filters) == (card.digest, card.settings["filters"]):
                kept = {"made_with": before.made_with, "run": before.run}
                card = card.model_copy(update=kept)
                break
        tables.write(self.output)
        write_card(self.output, card)
        remove_stale(self.output, set(records), card)
        self.output.clear_incomplete()
        return card

    def save_settings(self) -> None:
        """Notes the settings that decide what the tars hold."""
        text = json.dumps(self.settings.content(), indent=2)
        self.output.write(SETTINGS, text.encode())

    def _is_due(self, record: Record | None) -> bool:
        if record is None or not self.settings.retry_quarantined:
            return record is None
        rows = record.quarantine.to_pylist()
        return not all(Rejected.of(row).kind.is_lasting for row in rows)


def _inspect_batch(
    source: str, sources: list[Source], min_side_px: int, limits: Limits
) -> dict[Source, VideoInfo | Rejected]:
    folder = Folder.at(source)
    return {item: inspect(folder, item, min_side_px, limits) for item in sources}


def _inspected(source: Source, result: VideoInfo | Rejected) -> Inspected:
    if isinstance(result, Rejected):
        return Inspected(source, None, result)
    return Inspected(source, result)


def _reject(item: Inspected, kind: RejectReason, text: str) -> Inspected:
    return replace(item, rejected=Rejected(printable(item.source.path), kind, text))


def _without_unlisted(inspected: list[Inspected], unlisted: set[str]) -> list[Inspected]:
    """Rejects files that no list names."""
    kind = RejectReason.UNLISTED
    return [
        _reject(item, kind, kind.value) if item.info and item.source.path in unlisted else item
        for item in inspected
    ]


def _without_same_content(
    inspected: list[Inspected], labelling: Labelling | None
) -> list[Inspected]:
    """Rejects all files of the same content but the first."""
    labels = labelling.labels if labelling else {}
    first: dict[str, str] = {}
    marked = []
    for item in inspected:
        if item.info and item.rejected is None:
            path = item.source.path
            twin = first.setdefault(item.info.digest, path)
            if twin != path:
                text = f"{RejectReason.SAME_CONTENT.value} {printable(twin)}"
                if labels.get(twin) != labels.get(path):
                    text += ", which has another label, side or group"
                item = _reject(item, RejectReason.SAME_CONTENT, text)
        marked.append(item)
    return marked
