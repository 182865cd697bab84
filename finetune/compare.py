"""Is B better than A? `python finetune/compare.py --a RUN [RUN...] --b RUN [RUN...]`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from dynamonet.command_line import load
from dynamonet.commands import command
from dynamonet.errors import UserError, run_entry
from finetune.settings import CompareSettings

if TYPE_CHECKING:
    from finetune.evaluation.metrics import AccuracyComparison
    from finetune.evaluation.run_results import TestedVideos

EXAMPLES = """examples:
  {compare} --a runs/finetune/scratch --b runs/finetune/pretrained
  {compare} --a runs/finetune/a-seed* --b runs/finetune/b-seed*    seeds averaged
"""


def main(argv: list[str]) -> AccuracyComparison:
    """Compares finished runs on the videos that both sides were tested on.

    Raises:
        UserError: a folder is no finished run, or the two sides were tested on different videos.
    """
    options = load(
        CompareSettings,
        argv,
        prog=command("compare"),
        examples=EXAMPLES,
    )
    # here, because these take seconds that --help need not wait for
    from finetune.evaluation.metrics import compare_accuracy
    from finetune.evaluation.run_results import videos_of

    a, b = videos_of(options.a), videos_of(options.b)
    _check_same(a, b)
    comparison = compare_accuracy(a.right, b.right)
    console = Console()
    for name, side, folders in (("A", a, options.a), ("B", b, options.b)):
        text = f"{name}        top-1 {side.right.mean():.1%}, {len(folders)} run"
        first, *others = folders
        console.print(f"{text}{'s' if others else ''}: {first}", soft_wrap=True)
    ends = comparison.difference, comparison.low, comparison.high
    gain, low, high = (100 * each for each in ends)
    console.print(
        f"[bold]B - A    {gain:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}, "
        f"p = {comparison.p_value:.2g}[/bold]: {len(a.sources)} videos, of which A alone has "
        f"{comparison.only_a:.1%} right and B alone {comparison.only_b:.1%}",
        soft_wrap=True,
    )
    return comparison


def _check_same(a: TestedVideos, b: TestedVideos) -> None:
    if (a.sources, a.labels) == (b.sources, b.labels):
        return
    both = len(set(a.sources) & set(b.sources))
    raise UserError(
        f"A was tested on {len(a.sources)} videos and B on {len(b.sources)}, of which {both} are "
        "the same; expected the same videos with the same labels. Test both on the same shards, "
        "test_part and splits."
    )


if __name__ == "__main__":
    run_entry(main)
