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
TRAIN_VIDEOS, TEST_VIDEOS, LABELLED_SHARE = 450, 360, 0.08  # 4 labelled ones of each class
PRETRAIN_STEPS = 1500
RENDERED_APART = 100_000  # seeds of two renderings
HERE = "pretrained here"


class DemoSettings(Settings):
    """Runs three stages in one process, on rendered videos; or two on your own."""

    videos: Path | None = Field(default=None, description="Folder of your own videos.")
    seed: int = Field(default=0, ge=0, description="Of the rendered videos and all trainings.")


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
            motion_videos(console, settings.seed)
    console.print(f"All of it took {time.monotonic() - began:.0f} s.")


def motion_videos(console: Console, seed: int) -> None:
    """Renders videos, pretrains without labels, fine-tunes with few, and compares."""
    from data_prep.shard import main as shard
    from demo.motion_videos import CLASSES, write_motion_videos
    from dynamonet.frozen.statistics import difference
    from finetune import run as finetune
    from finetune.evaluation import protocol
    from finetune.evaluation.run_results import measured_runs
    from finetune.settings import FinetuneSettings
    from pretrain import run as pretrain
    from pretrain.settings import PretrainSettings

    name = f"motion{seed or ''}"
    videos = Path(f"data/{name}_videos")
    if not (videos / "labels.csv").is_file():
        console.rule("Rendering labelled motion videos")
        shutil.rmtree(videos, ignore_errors=True)
        write_motion_videos(
            videos, train_videos=TRAIN_VIDEOS, test_videos=TEST_VIDEOS, seed=RENDERED_APART * seed
        )
    total = TRAIN_VIDEOS + TEST_VIDEOS
    console.print(f"{videos}: {total} videos, classes {', '.join(CLASSES)}", soft_wrap=True)

    def stage(script: str, *words: str) -> list[str]:
        arguments = ["--config", "tiny", "--experiment", EXPERIMENT, *words]
        console.rule(f"python {script} {' '.join(arguments)}", align="left")
        return arguments

    where = ("--source", str(videos), "--dataset", "folder", "--output", name)
    shard(stage("data_prep/shard.py", *where))
    labelled = round(TRAIN_VIDEOS * LABELLED_SHARE)
    common = ("--shards", name, "--clips.flip", "false", "--seed", str(seed))
    way = ("--max_steps", str(PRETRAIN_STEPS), "--movers.share", "1")
    learnt = pretrain.main(stage("pretrain/run.py", *common, *way))
    # from scratch: as many steps as pretraining and fine-tuning have together
    both = PRETRAIN_STEPS + (FinetuneSettings.from_config("tiny").max_steps or 0)
    trunk = PretrainSettings.from_config("motion").model.trunk  # wider than that of the demo
    kernel = ",".join(map(str, trunk.stem_kernel))
    size = ("--model.trunk.width", str(trunk.width), "--model.trunk.stem_kernel", kernel)
    brought = ("--pretrained", "motion", *size)
    rows = {
        "from scratch": ("--pretrained", "none", "--recipe", "full", "--max_steps", str(both)),
        HERE: ("--pretrained", str(learnt.model), "--recipe", "full"),
        f"{HERE}, frozen": ("--pretrained", str(learnt.model), "--recipe", "ridge"),
        "motion": (*brought, "--recipe", "full"),
        "motion, frozen": (*brought, "--recipe", "ridge"),
    }
    table = Table(title=f"{labelled} labelled videos, {TEST_VIDEOS} test videos, 9 motions")
    for column in ("", "top-1", "95 % interval", "ahead of scratch", "training, s"):
        table.add_column(column, justify="right" if column else "left")
    minutes = learnt.run.metrics("run/")["minutes"]
    before = {row: 60 * minutes for row in rows if row.startswith(HERE)}
    runs, lines = [], []
    for row, start in rows.items():
        words = (*common, "--label_share", str(LABELLED_SHARE), *start)
        (tuned,) = finetune.main(stage("finetune/run.py", *words)).runs
        runs.append(measured_runs([tuned.folder]).outcomes)
        low, high, top1 = (tuned.metrics[key] for key in ("top1_low", "top1_high", "top1"))
        ahead = difference(runs[0], runs[-1]).points(digits=0) if len(runs) > 1 else ""
        spent = 60 * tuned.run.metrics("run/")["minutes"]
        price = f"{before[row]:.0f} + {spent:.0f}" if row in before else f"{spent:.0f}"
        table.add_row(row, f"{top1:.1%}", f"{low:.1%} to {high:.1%}", ahead, price)
        lines.append(f"{row}: {protocol.line([tuned.protocol] if tuned.protocol else [])}")
    console.rule()
    console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True)
    console.print(
        f"Pretraining saw {PRETRAIN_STEPS * 8:,} clips of the {TRAIN_VIDEOS} training videos, "
        "without labels; scratch took as many steps as pretraining and fine-tuning "
        "together. `motion` ships with the package and has seen none of these videos. A frozen "
        "network is not trained: ridge regression reads what it says of motion.",
        soft_wrap=True,
    )
    console.print(f"Curves, pictures, lineage: {learnt.run.ui_command()}", soft_wrap=True)


def own_videos(console: Console, videos: Path) -> None:
    """Makes shards of a folder of videos and pretrains on them for a few minutes."""
    from data_prep.shard import main as shard
    from pretrain import run as pretrain

    words = ["--config", "tiny", "--experiment", EXPERIMENT]
    shard([*words, "--source", str(videos), "--output", "own"])
    steps = ("--max_steps", str(PRETRAIN_STEPS))
    learnt = pretrain.main([*words, "--shards", "own", *steps])
    skill = learnt.run.metrics("val/")["skill"]
    console.print(f"Skill of the prediction on videos kept out of training: {skill:.3f}")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_entry(main)
