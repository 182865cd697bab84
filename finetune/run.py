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
  python finetune/run.py --dataset hmdb51 --split all          the three official splits, their mean
  python finetune/run.py --dataset folder --shards own --seeds 0,1,2 --recipe linear
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
    """Runs stage 3, prints where its results are, and returns the test metrics, their mean."""
    console = Console()
    shards = open_labelled(settings)
    # here, because torch, Ray and MLflow take seconds that a mistake need not wait for
    from finetune.runs import mean_metrics, run_all

    return mean_metrics(run_all(settings, shards, console))


def open_labelled(settings: FinetuneSettings) -> ShardSet:
    """Opens the labelled set that the settings name.

    Raises:
        UserError: there is none, or it has no labels; the message has the command that makes it.
    """
    from dynamonet.shards.index import CARD, ShardSet
    from dynamonet.storage import Folder

    path = settings.shards_path(settings.shards_name())
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
