"""What to start from: `python finetune/compare_backbones.py --dataset folder --shards own`

From scratch, own pretraining, other people's weights and foundation models on one labelled set,
frozen by ridge regression and by attentive probes, and fine-tuned in full; a table, a CSV and a
picture with intervals, minutes and parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from dynamonet.command_line import load
from dynamonet.commands import command
from dynamonet.errors import UserError, run_entry
from finetune.series_settings import ComparisonSettings
from finetune.train.labelled_set import open_labelled

if TYPE_CHECKING:
    from finetune.series.comparison_table import Row

EXAMPLES = """examples:
  {compare-backbones} --dataset folder --shards own --backbones none newest motion --max_steps 500
  {compare-backbones} --dataset hmdb51 --split all --seeds 0 --recipes ridge attentive \\
      --backbones newest r2plus1d_18.pth X3D_M.pyth MCG-NJU/videomae-base

Features of frozen networks are computed once and kept below runs/features. A comparison that was
stopped goes on with the same --name.
"""


def main(argv: list[str]) -> list[Row]:
    """Compares what the command line asks for; --help lists all settings."""
    settings = load(
        ComparisonSettings,
        argv,
        prog=command("compare-backbones"),
        examples=EXAMPLES,
    )
    given = settings.model_fields_set
    for one, many in (("pretrained", "backbones"), ("recipe", "recipes")):
        if one in given:
            raise UserError(f"--{one}: of one run; expected --{many}, all that are compared")
    if not settings.test:
        raise UserError("--test false: what is compared are accuracies on the test part")
    shards = open_labelled(settings)
    # here, because torch, Ray and MLflow take seconds that a mistake need not wait for
    from finetune.series.comparison import compare_backbones

    return compare_backbones(settings, shards, Console())


if __name__ == "__main__":
    run_entry(main)
