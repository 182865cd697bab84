"""Stage 1: raw videos -> shards. `python data_prep/shard.py --source VIDEOS --output SET`"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from data_prep.settings import PrepSettings
from data_prep.shots import check_installed
from dynamonet.errors import UserError, run_entry
from dynamonet.origin import DatasetUse
from dynamonet.settings import load
from dynamonet.storage import Folder, absolute

if TYPE_CHECKING:
    from data_prep.prepare import Report
    from data_prep.records import OnProgress
    from dynamonet.tracking import TrackedRun

EXAMPLES = """examples:
  python data_prep/shard.py --source /data/videos                     unlabelled videos
  python data_prep/shard.py --source UCF-101 --dataset ucf101 --lists ucfTrainTestlist
  python data_prep/shard.py --source own --dataset folder --output own    class-named subfolders
"""
UNITS = {"reading headers": "videos/s", "checking sources": "videos/s", "checking tars": "MB/s"}


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
    from dynamonet import cluster

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
    if "run" in report.card:
        console.print("Nothing was missing: the set is as it was.")
    else:
        run = _track(settings, report, started)
        console.print(f"MLflow   {run.ui_command()}", soft_wrap=True)
        where = f"{output}/gallery/*.png"
        console.print(f"filters  {where}: segments next to each threshold", soft_wrap=True)
    console.print(f"shards   {output}", soft_wrap=True)


def _track(settings: PrepSettings, report: Report, started: float) -> TrackedRun:
    """Logs a set to MLflow and notes the run on its card."""
    from data_prep.gallery import GALLERY
    from dynamonet import tracking
    from dynamonet.shards import index

    folder, card = Folder.at(settings.output_path()), report.card
    name = settings.name or folder.path.rsplit("/", 1)[-1]
    made = DatasetUse(name, folder.path, card["digest"], "output")
    run = tracking.start_run(
        "data_prep",
        name,
        settings,
        experiment=settings.experiment,
        runs_path=settings.runs_path(),
        results=folder.path,
        parents=[],
        datasets=[made],
        started=started,
    )
    with tracking.closing(run):
        counts = {k: v for k, v in card["counts"].items() if isinstance(v, int | float)}
        seconds = time.time() - started
        run.log_metrics({0: {**counts, "wall_seconds": seconds, "shards_built": report.built}})
        card["run"] = run.origin("data_prep", folder.path, [made], [], started).to_json()
        index.write_card(folder, card)
        run.log_text(json.dumps(card, indent=2), index.CARD)
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
    for name, value in rows.items():
        table.add_row(name, f"{value:,}")
    for what, reason, count in quarantine_counts(report.card):
        table.add_row(f"quarantined {what}: {reason}", f"{count:,}")
    for kind, count in counts["videos_normalised"].items():
        table.add_row(f"videos normalised: {kind}", f"{count:,}")
    for ending, count in report.others.most_common(3):
        table.add_row(f"other files {ending}", f"{count:,}")
    console.print(table)


if __name__ == "__main__":
    run_entry(main)
