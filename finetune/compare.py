"""Is B better than A? `python finetune/compare.py --a RUN [RUN...] --b RUN [RUN...]`"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dynamonet.errors import UserError, run_entry

if TYPE_CHECKING:
    from finetune.results import Videos
    from finetune.scores import Comparison

EXAMPLES = """examples:
  python finetune/compare.py --a runs/finetune/scratch --b runs/finetune/pretrained
  python finetune/compare.py --a runs/finetune/a-seed* --b runs/finetune/b-seed*    seeds averaged
"""


def main(argv: list[str]) -> Comparison:
    """Compares finished runs on the videos that both sides were tested on.

    Raises:
        UserError: a folder is no finished run, or the two sides were tested on different videos.
    """
    options = _parser().parse_args(argv)
    # here, because these take seconds that --help need not wait for
    from finetune.results import videos_of
    from finetune.scores import compare

    a, b = videos_of(options.a), videos_of(options.b)
    _check_same(a, b)
    found = compare(a.right, b.right)
    console = Console()
    for name, side, folders in (("A", a, options.a), ("B", b, options.b)):
        text = f"{name}        top-1 {side.right.mean():.1%}, {len(folders)} run"
        console.print(f"{text}{'s' if len(folders) > 1 else ''}: {folders[0]}", soft_wrap=True)
    console.print(
        f"[bold]B - A    {100 * found.difference:+.1f} points, 95 % interval "
        f"{100 * found.low:+.1f} to {100 * found.high:+.1f}, p = {found.p_value:.2g}[/bold]: "
        f"{len(a.sources)} videos, of which A alone has {found.only_a:.1%} right and B alone "
        f"{found.only_b:.1%}",
        soft_wrap=True,
    )
    return found


def _check_same(a: Videos, b: Videos) -> None:
    if (a.sources, a.labels) == (b.sources, b.labels):
        return
    both = len(set(a.sources) & set(b.sources))
    raise UserError(
        f"A was tested on {len(a.sources)} videos and B on {len(b.sources)}, of which {both} are "
        "the same; expected the same videos with the same labels. Test both on the same shards, "
        "test_part and splits."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python finetune/compare.py",
        description="Compares two fine-tuned models video by video: difference of their "
        "accuracies, its interval (bootstrap over videos) and a paired permutation test. "
        "Several runs on a side, e.g. seeds, are averaged first.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in ("a", "b"):
        parser.add_argument(
            f"--{name}",
            nargs="+",
            type=Path,
            required=True,
            metavar="RUN",
            help=f"folders of finished fine-tuning runs: side {name.upper()}",
        )
    return parser


if __name__ == "__main__":
    run_entry(main)
