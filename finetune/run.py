"""Stage 3: fine-tuning. `python finetune/run.py --dataset hmdb51`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from dynamonet.errors import UserError, run_entry
from dynamonet.settings import load
from finetune.settings import FinetuneSettings

if TYPE_CHECKING:
    from dynamonet.shards.index import ShardSet

EXAMPLES = """examples:
  python finetune/run.py --dataset hmdb51 --split 1            on the newest pretrained model
  python finetune/run.py --dataset ucf101 --pretrained none    from scratch
  python finetune/run.py --dataset folder --shards own --label_share 0.1
"""


def main(argv: list[str]) -> dict[str, float]:
    """Fine-tunes as the command line says; --help lists all settings."""
    settings = load(
        FinetuneSettings,
        argv,
        stage="finetune",
        prog="python finetune/run.py",
        description="Fine-tunes a pretrained model on a labelled shard set and measures it.",
        examples=EXAMPLES,
    )
    return finetune(settings)


def finetune(settings: FinetuneSettings) -> dict[str, float]:
    """Runs stage 3, prints where its results are, and returns the test metrics."""
    console = Console()
    path = settings.shards_path(settings.shards_name())
    shards = _open(settings, path)
    # here, because torch, Ray and MLflow take seconds that a mistake need not wait for
    from dynamonet.model.files import read_weights
    from dynamonet.model.network import DynamoNet
    from dynamonet.origin import DatasetUse
    from dynamonet.report import write_report
    from dynamonet.training.launch import launch
    from finetune.objective import Finetuning
    from finetune.transfer import find_pretrained, transfer

    console.print(
        f"shards   {path}: {len(shards):,} segments, {len(shards.classes)} classes, "
        f"split {settings.split} of {shards.num_splits}",
        soft_wrap=True,
    )
    pretrained = find_pretrained(settings)
    task = Finetuning(settings, path, str(pretrained.folder) if pretrained else None)
    if pretrained:
        console.print(f"weights  {pretrained.folder}", soft_wrap=True)
        fitted = DynamoNet(task.architecture())
        weights = read_weights(pretrained.folder)
        console.print(f"         {transfer(fitted, weights, settings.min_loaded_share)}")
    else:
        console.print("weights  from scratch")
    made_by = (pretrained.origin if pretrained else None, shards.origin)
    name = path.rsplit("/", 1)[-1]
    done = launch(
        "finetune",
        name,
        task,
        parents=[origin for origin in made_by if origin],
        datasets=[DatasetUse(name, path, shards.digest, "training")],
        console=console,
    )
    metrics = done.run.metrics("test/")
    weights_name = "from scratch" if pretrained is None else str(pretrained.folder)
    line = accuracy_line(metrics, settings, task.architecture().num_frames, weights_name)
    console.print(f"[bold]{line}[/bold]", soft_wrap=True)
    console.print(f"model    {done.model}", soft_wrap=True)
    console.print(f"report   {write_report(str(done.folder), settings)}", soft_wrap=True)
    console.print(f"MLflow   {done.run.ui_command()}", soft_wrap=True)
    return metrics


def accuracy_line(
    metrics: dict[str, float], settings: FinetuneSettings, num_frames: int, weights: str
) -> str:
    """States an accuracy with all that it hangs on."""
    more = f", top-5 {metrics['top5']:.1%}" if "top5" in metrics else ""
    return (
        f"test     top-1 {metrics['top1']:.1%}{more}, mean of classes {metrics['class_mean']:.1%}: "
        f"{metrics['videos']:.0f} {settings.test_part} videos of split {settings.split}, "
        f"{num_frames} frames x {settings.test_clips} clips x 1 crop, seed {settings.seed}, "
        f"{weights}"
    )


def _open(settings: FinetuneSettings, path: str) -> ShardSet:
    from dynamonet.shards.index import CARD, ShardSet
    from dynamonet.storage import Folder

    if Folder.at(path).size(CARD) is None:
        raise UserError(
            f"{path}: no shards of {settings.dataset} here. Make them with\n"
            f"  python data_prep/shard.py --source VIDEOS --dataset {settings.dataset} "
            f"--output {path}"
        )
    shards = ShardSet.open(path)
    if not shards.classes:
        raise UserError(
            f"{path}: these shards have no labels. Make labelled ones with\n"
            f"  python data_prep/shard.py --source VIDEOS --dataset {settings.dataset} "
            "--output ANOTHER"
        )
    return shards


if __name__ == "__main__":
    run_entry(main)
