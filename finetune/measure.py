"""The accuracy of a finished model. `python finetune/measure.py MODEL --shards SET --split 2`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from dynamonet.command_line import load
from dynamonet.commands import command
from dynamonet.errors import run_entry
from finetune.evaluation.settings import MeasureSettings

if TYPE_CHECKING:
    from finetune.evaluation.measurement import Measured

EXAMPLES = """examples:
  {measure} runs/finetune/NAME --shards other               another set with these classes
  {measure} runs/finetune/NAME --shards own --split 2 --clips 10 --crops 3
"""


def main(argv: list[str]) -> Measured:
    """Measures what the command line says; --help lists all options.

    Raises:
        UserError: no model or no such set, a class that the model does not know, or videos that it
            was trained on.
    """
    settings = load(MeasureSettings, argv, prog=command("measure"), examples=EXAMPLES)
    # here, because torch takes seconds that a mistake need not wait for
    from finetune.evaluation.measurement import measure

    return measure(settings, Console())


if __name__ == "__main__":
    run_entry(main)
