"""Stage 1: raw videos -> shards. `python data_prep/shard.py --source VIDEOS --output SET`"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from data_prep.settings import PrepSettings
from data_prep.shots import check_installed
from dynamonet.errors import UserError, run_entry
from dynamonet.origin import DatasetUse
from dynamonet.settings import load
from dynamonet.storage import Folder, absolute
from dynamonet.video.files import printable

if TYPE_CHECKING:
    from data_prep.labels import Labelling
    from data_prep.prepare import Report
    from data_prep.records import OnProgress
    from dynamonet.tracking import TrackedRun

EXAMPLES = """examples:
  python data_prep/shard.py --source /data/videos                     unlabelled videos
  python data_prep/shard.py --source UCF-101 --dataset ucf101 --lists ucfTrainTestlist
  python data_prep/shard.py --source own --dataset folder --output own    class-named subfolders
"""
SHOWN = 3  # examples of a disagreement between lists and files
UNITS = {
    "reading headers": "videos/s",
    "checking sources": "videos/s",
    "checking tars": "MB/s",
    "fingerprints": "segments/s",
    "comparing pairs": "pairs/s",
}


def main(argv: list[str]) -> None:
    """Makes shards as the command line says; --help lists all settings."""
    settings = load(
        PrepSettings,
        argv,
        stage="data_prep",
        prog="python data_prep/shard.py",
        description="Cuts raw videos into segments and writes them as WebDataset shards.",
        examples=EXAMPLES,
    )
    if settings.source is None:
        raise UserError(
            "--source is missing: the folder of your videos, searched to any depth.\n" + EXAMPLES
        )
    shard(settings)


def shard(settings: PrepSettings) -> None:
    """Runs stage 1 under an MLflow run and prints what it did."""
    # here, because Ray and MLflow take seconds that a mistake need not wait for
    from data_prep.prepare import prepare
    from data_prep.report import write_report
    from dynamonet import cluster
    from dynamonet.shards import index

    if settings.cut == "shots":
        check_installed()
    console, started = Console(), time.time()
    output = settings.output_path()
    console.print(f"videos   {absolute(settings.source or '')}\nshards   {output}", soft_wrap=True)
    try:
        with cluster.connected(), progress_bars(console) as on_progress:
            report = prepare(settings, on_progress)
    except KeyboardInterrupt:
        Folder.at(output).clear_incomplete()
        raise
    _print_report(console, report)
    folder = Folder.at(output)
    if "run" not in report.card or folder.size(index.REPORT) is None:
        write_report(folder)
    if "run" in report.card:
        console.print("Nothing was missing: the set is as it was.")
    else:
        run = _track(settings, report, started)
        console.print(f"MLflow   {run.ui_command()}", soft_wrap=True)
        where = f"{output}/gallery/*.png"
        console.print(f"filters  {where}: segments next to each threshold", soft_wrap=True)
    console.print(f"shards   {output}", soft_wrap=True)
    console.print(f"report   {output}/{index.REPORT}", soft_wrap=True)


def _track(settings: PrepSettings, report: Report, started: float) -> TrackedRun:
    """Logs a set to MLflow and notes the run on its card."""
    from data_prep.gallery import GALLERY
    from dynamonet import tracking
    from dynamonet.shards import index

    folder, card = Folder.at(settings.output_path()), report.card
    name = settings.name or folder.path.rsplit("/", 1)[-1]
    made = DatasetUse(name, folder.path, card["digest"], "output")
    excluded = [DatasetUse(**each, context="excluded") for each in card["excluded"]]
    run = tracking.start_run(
        "data_prep",
        name,
        settings,
        experiment=settings.experiment,
        runs_path=settings.runs_path(),
        results=folder.path,
        parents=[],
        datasets=[made, *excluded],
        started=started,
    )
    with tracking.closing(run):
        counts = {k: v for k, v in card["counts"].items() if isinstance(v, int | float)}
        seconds = time.time() - started
        run.log_metrics({0: {**counts, "wall_seconds": seconds, "shards_built": report.built}})
        card["run"] = run.origin("data_prep", folder.path, [made, *excluded], [], started).to_json()
        index.write_card(folder, card)
        run.log_text(json.dumps(card, indent=2), index.CARD)
        run.log_text(folder.read(index.REPORT).decode(), index.REPORT)
        for file, picture in report.pictures.items():
            run.log_bytes(picture, f"{GALLERY}/{file}")
    return run


@contextmanager
def progress_bars(console: Console) -> Iterator[OnProgress]:
    """Shows a bar with its rate for each kind of work that is reported."""
    columns = (TextColumn("{task.description:16}"), BarColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        tasks: dict[str, tuple[TaskID, float]] = {}

        def on_progress(what: str, done: float, total: float) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total, rate=""), time.monotonic()
            task, began = tasks[what]
            spent = max(time.monotonic() - began, 1e-3)
            unit = UNITS.get(what, "x real time")
            progress.update(task, completed=done, total=total, rate=f"{done / spent:,.0f} {unit}")

        yield on_progress


def _print_report(console: Console, report: Report) -> None:
    from data_prep.assemble import quarantine_counts

    counts = report.card["counts"]
    table = Table("", "count", title="Stage 1", title_justify="left")
    table.columns[1].justify = "right"
    rows = {
        "videos found": counts["videos_found"],
        "videos taken": counts["videos_taken"],
        "segments": counts["samples"],
        "seconds": counts["seconds"],
        "bytes": counts["bytes"],
        "shards made now": report.built,
        "shards already there": report.kept,
    }
    if report.labelling:
        rows |= {
            "classes": len(report.labelling.classes),
            "listed, but not found": len(report.labelling.missing),
            "found, but not listed": len(report.labelling.unlisted),
        }
    counted = report.labelling.class_counts() if report.labelling else {}
    if counted:
        ordered = sorted(counted, key=lambda name: (counted[name], name))
        for word, name in (("fewest", ordered[0]), ("most", ordered[-1])):
            rows[f"videos of the class with {word}: {escape(name)}"] = counted[name]
    if counts["near_duplicates"]:
        rows["near duplicates"] = counts["near_duplicates"]
    for name, value in rows.items():
        table.add_row(name, f"{value:,}")
    for what, reason, count in quarantine_counts(report.card):
        table.add_row(f"quarantined {what}: {reason}", f"{count:,}")
    for kind, count in counts["videos_normalised"].items():
        table.add_row(f"videos normalised: {kind}", f"{count:,}")
    for ending, count in report.others.most_common(3):
        table.add_row(f"other files {ending}", f"{count:,}")
    console.print(table)
    if report.labelling:
        _print_disagreements(console, report.labelling)


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
