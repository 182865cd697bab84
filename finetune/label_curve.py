"""How many labels pretraining saves: `python finetune/label_curve.py --dataset folder --shards own`

For each share of the labels and each seed one training from scratch and one pretrained, with the
same settings; a table, a CSV and a picture of both curves with their intervals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from dynamonet.command_line import load
from dynamonet.commands import command
from dynamonet.errors import UserError, run_entry
from finetune.series_settings import CurveSettings
from finetune.train.labelled_set import open_labelled

if TYPE_CHECKING:
    from finetune.series.label_efficiency import Point

EXAMPLES = """examples:
  {label-curve} --dataset folder --shards own --max_steps 500
  {label-curve} --dataset ucf101 --shares 0.01,0.1,1 --seeds 0,1,2,3,4
  {label-curve} --dataset hmdb51 --pretrained runs/pretrain/NAME --name hmdb-curve

Give --max_steps: epochs of a small share are few steps. A curve that was stopped goes on with the
same --name.
"""


def main(argv: list[str]) -> list[Point]:
    """Draws the curve that the command line asks for; --help lists all settings."""
    settings = load(
        CurveSettings,
        argv,
        prog=command("label-curve"),
        examples=EXAMPLES,
    )
    if settings.pretrained == "none":
        raise UserError(
            "--pretrained none: the curve compares a pretrained model with a training from "
            "scratch; name a model, or `newest`"
        )
    if not settings.test:
        raise UserError("--test false: the curve is one of accuracies on the test part")
    shards = open_labelled(settings)
    # here, because torch, Ray and MLflow take seconds that a mistake need not wait for
    from finetune.series.label_efficiency import label_curve

    return label_curve(settings, shards, Console())


if __name__ == "__main__":
    run_entry(main)
