"""Does pretraining pay? `make bench-learning`: what is left of seven hours of two cores.

Trains every arm of `benchmarks.learning.arms` on every fold of every set, one training per core,
and writes docs/results.md and the table of README. Rows that are in the results file are not
trained again unless their settings have changed; delete a line to train it again.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from pydantic import Field
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.learning.arms import plan
from benchmarks.learning.page import figures, render, summary
from benchmarks.learning.plots import draw_labels, draw_scale
from benchmarks.learning.readings import readings
from benchmarks.learning.rows import Ledger, Line, Runner
from benchmarks.learning.sets import make_sets
from benchmarks.report import show
from dynamonet import cluster
from dynamonet.command_line import load
from dynamonet.errors import run_entry
from dynamonet.settings import Settings
from dynamonet.storage import atomic_file

ROOT = Path(__file__).parents[1]
REAL_DATA = Path(os.environ.get("DYNAMONET_REAL_DATA", ROOT / "../shared/data"))
RESULTS = ROOT / "benchmarks/results/learning.jsonl"
PAGE = ROOT / "docs/results.md"
README, MARK = ROOT / "README.md", "<!-- from make bench-learning -->"  # before and after its table


class LearningSettings(Settings):
    """Does pretraining pay on real video with few labels?"""

    home: Path = Field(
        default=ROOT / "data/learning", description="Folder of shards and pretrained models."
    )
    results: Path = Field(default=RESULTS, description="Results file.")
    only: tuple[str, ...] = Field(
        default=(), description="Train only rows whose key has all of these words."
    )
    train: bool = Field(default=True, description="False = only write the page.")


def main(argv: list[str]) -> None:
    """Trains what is missing, and writes what the rows say; see --help."""
    settings = load(LearningSettings, argv, prog="python -m benchmarks.bench_learning")
    console, ledger = Console(width=110), Ledger.open(settings.results)
    if settings.train:
        train(settings, ledger, console)
    page = render(ledger)
    console.print(Markdown(page))
    if settings.results == RESULTS:
        with atomic_file(PAGE) as growing:
            growing.write_text(page, "utf-8")
        with atomic_file(README) as growing:
            before, _, after = README.read_text("utf-8").split(MARK)
            table = f"{MARK}\n\n{summary(ledger)}\n\n{MARK}"
            growing.write_text(before + table + after, "utf-8")
        draw_labels(ledger, PAGE.with_name("results-labels.png"))
        draw_scale(ledger, PAGE.with_name("results-scale.png"))
    show([], figures(ledger))


def train(settings: LearningSettings, ledger: Ledger, console: Console) -> None:
    """Does the rows that are not in the ledger, and prints a line for each."""
    home = settings.home.absolute()
    with cluster.connected():  # for stage 1 only
        shards = make_sets(home, REAL_DATA.resolve())
    rows = [*plan(), *readings()]
    if forgotten := ledger.forget(rows, shards):
        console.print(f"{forgotten} rows are trained again: they had other settings")
    left = [row for row in rows if row.key not in ledger.lines]
    left = [row for row in left if all(word in row.key for word in settings.only)]
    console.print(f"{len(rows):,} rows, {len(left):,} of them to be trained now")

    def report(line: Line) -> None:
        score = f"top-1 {line['top1']:.1%}, " if "top1" in line else ""
        text = f"{time.strftime('%H:%M')}  {line['key']}: {score}{line['seconds']:.0f} s"
        console.print(text, soft_wrap=True, highlight=False)

    Runner(home, shards).run(left, ledger, report)


if __name__ == "__main__":
    run_entry(main)
