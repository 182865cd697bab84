"""Stage 3: fine-tuning. `python finetune/run.py --dataset hmdb51`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from dynamonet.command_line import load
from dynamonet.commands import command
from dynamonet.errors import run_entry
from finetune.settings import FinetuneSettings
from finetune.train.labelled_set import open_labelled

if TYPE_CHECKING:
    from finetune.train.several import FinetuneResult

EXAMPLES = """examples:
  {finetune} --dataset hmdb51 --split 1            on the newest pretrained model
  {finetune} --dataset ucf101 --pretrained none    from scratch
  {finetune} --dataset folder --shards own --label_share 0.1
  {finetune} --dataset hmdb51 --split all          the three official splits, their mean
  {finetune} --dataset folder --shards own --seeds 0,1,2 --recipe ridge
"""


def main(argv: list[str]) -> FinetuneResult:
    """Fine-tunes as the command line says; --help lists all settings."""
    settings = load(
        FinetuneSettings,
        argv,
        prog=command("finetune"),
        examples=EXAMPLES,
    )
    return finetune(settings)


def finetune(settings: FinetuneSettings) -> FinetuneResult:
    """Runs stage 3, once for each split and seed asked for, and prints where its results are.

    Raises:
        UserError: no shards, no pretrained weights or ones that do not fit, or see `launch`.
    """
    console = Console()
    shards = open_labelled(settings)
    # here, because torch, Ray and MLflow take seconds that a mistake need not wait for
    from dynamonet import cluster

    with cluster.connected(importing=cluster.HEAVY):  # one Ray for all seeds
        from finetune.train.several import run_all

        return run_all(settings, shards, console)


if __name__ == "__main__":
    run_entry(main)
