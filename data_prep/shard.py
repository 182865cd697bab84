"""Stage 1: raw videos -> shards. `python data_prep/shard.py --source VIDEOS --output SET`"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_prep.progress import progress_bars
from data_prep.segments.scenes import check_installed
from data_prep.settings import PrepSettings
from dynamonet.command_line import load
from dynamonet.commands import command, fill
from dynamonet.errors import UserError, run_entry
from dynamonet.storage import Folder, absolute
from dynamonet.tracking.origin import DatasetUse
from dynamonet.video.files import printable

if TYPE_CHECKING:
    from data_prep.pipeline import PrepResult
    from data_prep.sources.labels import Labelling
    from dynamonet.shards.shard_set import ShardSet
    from dynamonet.tracking.runs import TrackedRun

EXAMPLES = """examples:
  {shard} --source /data/videos                     unlabelled videos
  {shard} --source UCF-101 --dataset ucf101 --lists ucfTrainTestlist
  {shard} --source own --dataset folder --output own    class-named subfolders
"""
SHOWN = 3  # examples of a disagreement between lists and files


def main(argv: list[str]) -> ShardSet:
    """Makes shards as the command line says; --help lists all settings."""
    settings = load(
        PrepSettings,
        argv,
        prog=command("shard"),
        examples=EXAMPLES,
    )
    return shard(settings)


def shard(settings: PrepSettings) -> ShardSet:
    """Runs stage 1 under an MLflow run, prints what it did, and returns the set.

    Raises:
        UserError: no videos there, settings that do not go together, or a set made by others.
    """
    if settings.source is None:
        raise UserError(
            "--source is missing: the folder of your videos, searched to any depth.\n"
            + fill(EXAMPLES)
        )
    # here, because Ray and MLflow take seconds that a mistake need not wait for
    from data_prep.pipeline import prepare
    from data_prep.report.page import write_set_page
    from dynamonet import cluster
    from dynamonet.shards import index, shard_set
    from dynamonet.tracking.store import tracking_uri

    if settings.cut == "shots":
        check_installed()
    console, started = Console(), time.time()
    tracking_uri(settings.runs_path())  # where nothing can be written nothing should be begun
    output = settings.output_path()
    console.print(f"videos   {absolute(settings.source or '')}\nshards   {output}", soft_wrap=True)
    try:
        with cluster.connected(), progress_bars(console) as on_progress:
            result = prepare(settings, on_progress)
    except KeyboardInterrupt:
        Folder.at(output).clear_incomplete()
        raise
    _print_result(console, result)
    folder = Folder.at(output)
    if result.card.run is None or folder.size(index.REPORT) is None:
        write_set_page(folder)
    if result.card.run is not None:
        console.print("Nothing was missing: the set is as it was.")
    else:
        run = _track(settings, result, started)
        console.print(f"MLflow   {run.ui_command()}", soft_wrap=True)
        where = f"{output}/gallery/*.png"
        console.print(f"filters  {where}: segments next to each threshold", soft_wrap=True)
    console.print(f"shards   {output}", soft_wrap=True)
    console.print(f"report   {output}/{index.REPORT}", soft_wrap=True)
    return shard_set.ShardSet.open(output)


def _track(settings: PrepSettings, result: PrepResult, started: float) -> TrackedRun:
    """Logs a set to MLflow and notes the run on its card."""
    from data_prep.report.gallery import GALLERY
    from dynamonet.shards import index
    from dynamonet.shards.card import CARD, write_card
    from dynamonet.tracking.runs import closing, start_run

    folder, card = Folder.at(settings.output_path()), result.card
    name = settings.name or folder.path.rsplit("/", 1)[-1]
    made = DatasetUse(name, folder.path, card.digest, "output")
    excluded = [DatasetUse(s.name, s.path, s.digest, "excluded") for s in card.excluded]
    run = start_run(
        "data_prep",
        name,
        settings,
        results=folder.path,
        parents=[],
        datasets=[made, *excluded],
        started=started,
    )
    with closing(run):
        counts = {name: n for name, n in card.counts if isinstance(n, int | float)}
        seconds = time.time() - started
        run.log_metrics({0: {**counts, "wall_seconds": seconds, "shards_built": result.written}})
        origin = run.origin("data_prep", folder.path, [made, *excluded], [], started)
        card = card.model_copy(update={"run": origin.to_json()})
        write_card(folder, card)
        run.log_text(card.to_json(), CARD)
        run.log_text(folder.read(index.REPORT).decode(), index.REPORT)
        for file, picture in result.pictures.items():
            run.log_bytes(picture, f"{GALLERY}/{file}")
    return run


def _print_result(console: Console, result: PrepResult) -> None:
    counts = result.card.counts
    table = Table("", "count", title="Stage 1", title_justify="left")
    table.columns[1].justify = "right"
    rows = {
        "videos found": counts.videos_found,
        "videos taken": counts.videos_taken,
        "segments": counts.samples,
        "seconds declared": counts.seconds_declared,
        "seconds in segments": counts.seconds,
        "seconds in quarantine": counts.seconds_quarantined,
        "seconds not asked for": counts.seconds_not_asked_for,
        "bytes": counts.bytes,
        "shards made now": result.written,
        "shards already there": result.kept,
    }
    if result.labelling:
        rows |= {
            "classes": len(result.labelling.classes),
            "listed, but not found": len(result.labelling.missing),
            "found, but not listed": len(result.labelling.unlisted),
        }
    counted = result.labelling.class_counts() if result.labelling else {}
    if counted:
        ordered = sorted(counted, key=lambda name: (counted[name], name))
        for word, name in (("fewest", ordered[0]), ("most", ordered[-1])):
            rows[f"videos of the class with {word}: {escape(name)}"] = counted[name]
    if counts.near_duplicates:
        rows["near duplicates"] = counts.near_duplicates
    for name, value in rows.items():
        table.add_row(name, f"{value:,}")
    for reason, count in counts.videos_quarantined.items():
        table.add_row(f"quarantined videos: {escape(reason)}", f"{count:,}")
    for reason, count in counts.stretches_quarantined.items():
        table.add_row(f"quarantined stretches: {escape(reason)}", f"{count:,}")
    for kind, count in counts.videos_normalised.items():
        table.add_row(f"videos normalised: {kind}", f"{count:,}")
    for ending, count in result.others.most_common(3):
        table.add_row(f"other files {ending}", f"{count:,}")
    console.print(table)
    if result.labelling:
        _print_disagreements(console, result.labelling)


def _print_disagreements(console: Console, labelling: Labelling) -> None:
    """Prints where lists and files disagree, with examples."""
    empty = [name for name, count in labelling.class_counts().items() if not count]
    trouble = {
        "classes without a video": empty,
        "listed, but not found": labelling.missing,
        "found, but not listed": labelling.unlisted,
    }
    for what, names in trouble.items():
        if names:
            shown = ", ".join(printable(name) for name in names[:SHOWN])
            more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
            console.print(f"{what}: {escape(shown)}{more}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    run_entry(main)
