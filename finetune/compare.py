"""Is B better than A? `python finetune/compare.py --a RUN [RUN...] --b RUN [RUN...]`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from dynamonet.command_line import load
from dynamonet.commands import command
from dynamonet.errors import UserError, run_entry
from finetune.evaluation.settings import CompareSettings

if TYPE_CHECKING:
    from dynamonet.frozen.statistics import Difference
    from finetune.evaluation.run_results import MeasuredRuns

EXAMPLES = """examples:
  {compare} --a runs/finetune/scratch --b runs/finetune/pretrained
  {compare} --a runs/finetune/a-seed* --b runs/finetune/b-seed*    seeds averaged
"""


def main(argv: list[str]) -> Difference:
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
    from dynamonet.frozen.statistics import accuracy_interval, difference
    from finetune.evaluation import protocol
    from finetune.evaluation.run_results import measured_runs

    a, b = measured_runs(options.a), measured_runs(options.b)
    _check_same(a, b)
    console = Console()
    for name, side in (("A", a), ("B", b)):
        low, high = accuracy_interval(side.outcomes)
        console.print(
            f"{name}        top-1 {side.outcomes.mean:.1%} (95 % interval {low:.1%} to "
            f"{high:.1%}): {protocol.line(side.protocols)}",
            soft_wrap=True,
        )
    found = difference(a.outcomes, b.outcomes)
    gain, low, high = (100 * each for each in (found.mean, found.low, found.high))
    console.print(
        f"[bold]B - A    {gain:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}, "
        f"p = {found.p_value:.2g}[/bold]: over {_over(a, b)}",
        soft_wrap=True,
    )
    return found


def _over(a: MeasuredRuns, b: MeasuredRuns) -> str:
    """Says over what chance the interval speaks."""
    groups, videos = a.outcomes.num_groups, len(a.sources)
    over = f"{videos} videos" + (f" in {groups} groups" if groups < videos else "")
    free = [side.outcomes.of_trainings()[1] for side in (a, b)]
    if all(free):
        return f"{over} and the seeds of both sides"
    return f"{over}; other seeds may give another difference: give each side several runs"


def _check_same(a: MeasuredRuns, b: MeasuredRuns) -> None:
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
