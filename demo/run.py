"""The demo: three stages in one process. `python demo/run.py`, or `--videos DIR` for your own."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from pydantic import Field
from rich.console import Console
from rich.table import Table

from dynamonet.command_line import load
from dynamonet.errors import run_entry
from dynamonet.settings import Settings

EXPERIMENT = "demo"  # its own, so that a real fine-tuning never takes a demo model for the newest
LABELLED_SHARE = 0.25


class DemoSettings(Settings):
    """Runs three stages in one process, on rendered videos; or two on your own."""

    videos: Path | None = Field(default=None, description="Folder of your own videos.")


def main(argv: list[str]) -> None:
    """Runs the demo; see --help."""
    settings = load(DemoSettings, argv, prog="python demo/run.py")
    console, began = Console(), time.monotonic()
    # here, because they take seconds that --help need not wait for
    from dynamonet import cluster

    with cluster.connected():  # one Ray for all stages
        if settings.videos:
            own_videos(console, settings.videos)
        else:
            motion_videos(console)
    console.print(f"All of it took {time.monotonic() - began:.0f} s.")


def motion_videos(console: Console) -> None:
    """Renders labelled videos, pretrains without the labels, fine-tunes with a quarter of them."""
    from data_prep.shard import main as shard
    from demo.motion_videos import CLASSES, write_motion_videos
    from finetune import run as finetune
    from finetune.evaluation import protocol
    from finetune.settings import FinetuneSettings
    from pretrain import run as pretrain
    from pretrain.settings import PretrainSettings

    videos = Path("data/motion_videos")
    if not (videos / "labels.csv").is_file():
        console.rule("Rendering labelled motion videos")
        shutil.rmtree(videos, ignore_errors=True)
        write_motion_videos(videos, train_videos=720, test_videos=270)
    console.print(f"{videos}: 990 videos, classes {', '.join(CLASSES)}", soft_wrap=True)

    def stage(script: str, *words: str) -> list[str]:
        arguments = ["--config", "tiny", "--experiment", EXPERIMENT, *words]
        console.rule(f"python {script} {' '.join(arguments)}", align="left")
        return arguments

    shard(
        stage(
            "data_prep/shard.py",
            "--source",
            str(videos),
            "--dataset",
            "folder",
            "--output",
            "motion",
        )
    )
    learnt = pretrain.main(stage("pretrain/run.py", "--shards", "motion", "--clips.flip", "false"))
    skill = learnt.run.metrics("val/")["skill"]
    table = Table(title=f"{720 * LABELLED_SHARE:.0f} labelled videos, 270 test videos, 9 motions")
    for column in ("", "top-1", "95 % interval", "top-5", "skill of the prediction"):
        table.add_column(column, justify="left" if not column else "right")
    told = []
    # from scratch: as many steps as both have together, all at the full rate
    both = (PretrainSettings.from_config("tiny"), FinetuneSettings.from_config("tiny"))
    steps = sum(each.max_steps or 0 for each in both)
    scratch = ("--pretrained", "none", "--max_steps", str(steps))
    pretrained = ("--trunk_rate", "0.33", "--pretrained")
    for name, start, shown in (
        ("from scratch", scratch, ""),
        ("pretrained", (*pretrained, str(learnt.model)), f"{skill:.2f}"),
        ("--pretrained motion", (*pretrained, "motion"), ""),
    ):
        tuned = finetune.main(
            stage(
                "finetune/run.py",
                "--shards",
                "motion",
                "--label_share",
                str(LABELLED_SHARE),
                *start,
            )
        )
        top1, top5, low, high = (
            f"{tuned.metrics[key]:.1%}" for key in ("top1", "top5", "top1_low", "top1_high")
        )
        table.add_row(name, top1, f"{low} to {high}", top5, shown)
        told.append(
            f"{name}: {protocol.line([run.protocol for run in tuned.runs if run.protocol])}"
        )
    console.rule()
    console.print(table)
    for line in told:
        console.print(line, soft_wrap=True)
    console.print("Skill: 1 - error / error of copying the last frame; 0 = a copy, 1 = perfect.")
    console.print(f"Curves, pictures, lineage: {learnt.run.ui_command()}", soft_wrap=True)


def own_videos(console: Console, videos: Path) -> None:
    """Makes shards of a folder of videos and pretrains on them for a few minutes."""
    from data_prep.shard import main as shard
    from pretrain import run as pretrain

    words = ["--config", "tiny", "--experiment", EXPERIMENT]
    shard([*words, "--source", str(videos), "--output", "own"])
    learnt = pretrain.main([*words, "--shards", "own"])
    skill = learnt.run.metrics("val/")["skill"]
    console.print(f"Skill of the prediction on videos kept out of training: {skill:.3f}")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_entry(main)
