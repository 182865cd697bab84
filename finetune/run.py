"""Stage 3: fine-tuning. `python finetune/run.py --dataset hmdb51`"""

from __future__ import annotations

from rich.console import Console

from dynamonet.command_line import load
from dynamonet.errors import run_entry
from finetune.settings import FinetuneSettings
from finetune.train.labelled_set import open_labelled

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
        examples=EXAMPLES,
    )
    return finetune(settings)


def finetune(settings: FinetuneSettings) -> dict[str, float]:
    """Runs stage 3, prints where its results are, and returns the test metrics, their mean."""
    console = Console()
    shards = open_labelled(settings)
    # here, because torch, Ray and MLflow take seconds that a mistake need not wait for
    from finetune.train.experiment import mean_metrics, run_all

    return mean_metrics(run_all(settings, shards, console))


if __name__ == "__main__":
    run_entry(main)
