"""Does pretraining pay? `make bench-learning`; `QUICK=1` for ten minutes of it

Trains every arm of `benchmarks.learning.arms` on every fold of every set, in this process, and
writes what the rows say together to docs/results.md. Rows that are in the results file are not done
again, unless their settings have changed; `--again ARM` forgets an arm whose code has.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from itertools import product
from pathlib import Path

import torch
from pydantic import Field
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track

from benchmarks.learning.arms import BASELINE, OURS, QUICK, Budget
from benchmarks.learning.page import OTHERS, curve_of, gain, render, scores_of
from benchmarks.learning.plan import TUNE, Row, curve, minutes, plan
from benchmarks.learning.rows import Ledger, Runner
from benchmarks.learning.sets import MOTION, make_sets
from benchmarks.learning.statistics import Scored
from benchmarks.report import Figure, show
from dynamonet import cluster
from dynamonet.command_line import load
from dynamonet.errors import run_entry
from dynamonet.settings import Settings
from dynamonet.storage import atomic_file

ROOT = Path(__file__).parents[1]
REAL_DATA = Path(os.environ.get("DYNAMONET_REAL_DATA", ROOT / "../shared/data"))
RESULTS = ROOT / "benchmarks/results/learning.jsonl"
REPORT = ROOT / "docs/results.md"
SECONDS_BESIDE = 0.85  # of a row, beside its training


class LearningSettings(Settings):
    """Does pretraining pay on real video with few labels?"""

    home: Path = Field(
        default=ROOT / "data/learning", description="Folder of shards and pretrained models."
    )
    results: Path = Field(default=RESULTS, description="Results file.")
    report: Path = Field(default=REPORT, description="Page to write; not with QUICK=1.")
    again: tuple[str, ...] = Field(default=(), description="Arms whose rows are forgotten.")
    train: bool = Field(default=True, description="False = only tell what the rows say.")


def main(argv: list[str]) -> None:
    """Runs what is missing, and tells what the rows say; see --help."""
    settings = load(LearningSettings, argv, prog="python -m benchmarks.bench_learning")
    quick = os.environ.get("QUICK") == "1"
    budget, home = (QUICK, settings.home / "quick") if quick else (Budget(), settings.home)
    results = home / "results.jsonl" if quick else settings.results
    console, ledger = Console(width=110), Ledger.open(results)
    if settings.train and (forgotten := ledger.forget(settings.again, budget)):
        console.print(f"{forgotten} rows are done again: other settings, or --again")
    with cluster.connected():  # stage 1 alone needs it
        sets = make_sets(home.absolute(), REAL_DATA.resolve(), rendered=budget.rendered)
    names = list(sets)
    runner = Runner(ledger, sets, home.absolute(), budget, torch.get_num_threads())
    rows = plan(names, budget)
    if settings.train:
        run(rows, runner, console)
    more = curve(best_of_ours(ledger, rows), names, budget)
    if settings.train:
        run(more, runner, console)
    page = render(ledger, budget, rows, more)
    console.print(Markdown(page))
    if not quick:
        with atomic_file(settings.report) as growing:
            growing.write_text(page, "utf-8")
    show([], figures(scores_of(ledger, rows, budget.folds), curve_of(ledger, more)))


def figures(
    scores: dict[tuple[str, str], Scored], points: dict[tuple[str, str, float], Scored]
) -> list[Figure]:
    """Returns how far our arms are ahead, in points of accuracy.

    On the real sets the lower end of the interval; on the rendered one, with the fewest labels
    against the baseline with the most of the curve.
    """
    found = [
        Figure(f"{own}_ahead_of_{other.replace(' ', '_')}_at_least", 100 * each.low, 0.0)
        for own, other in product(OURS, (BASELINE, *OTHERS))
        if (each := gain(scores, own, other))
    ]
    shares = [share for name, _, share in points if name == MOTION]
    few, most = min(shares, default=0), max(shares, default=0)
    for own in OURS:
        one, other = points.get((MOTION, own, few)), points.get((MOTION, BASELINE, most))
        if one and other:
            label = f"{own}_{few:.0%}_less_{BASELINE}_{most:.0%}_rendered"
            found.append(Figure(label, 100 * (one.accuracy - other.accuracy), 0.0))
    return found


def run(rows: list[Row], runner: Runner, console: Console) -> None:
    """Does the rows that are not done; tells first how many they are and how long they take."""
    if not rows:
        return
    ledger = runner.ledger
    left = [row for row in rows if ledger.row(row) is None]
    kinds = Counter(row.kind for row in rows)
    takes = sum(minutes(row, runner.budget) + SECONDS_BESIDE / 60 for row in left)
    console.print(
        f"{len(rows)} rows ({', '.join(f'{n} {kind}' for kind, n in kinds.items())}), "
        f"{len(rows) - len(left)} of them done; the rest takes about {takes:.0f} minutes"
    )
    for row in track(left, "rows", console=console, disable=not console.is_terminal):
        runner.run(row)
        found = ledger.lines[row.key]
        score = "" if "top1" not in found else f"  top-1 {found['top1']:.1%}"
        console.print(
            f"{time.strftime('%H:%M')}  {row.kind:8} {row.arm:16} {row.set:8} "
            f"fold {row.fold} seed {row.seed}.{row.repeat}  {found['steps']} steps{score}"
        )


def best_of_ours(ledger: Ledger, rows: list[Row]) -> str:
    """Returns the arm of ours that was best on validation."""
    done = {row.key: found for row in rows if row.kind == TUNE and (found := ledger.row(row))}
    return max(
        OURS,
        key=lambda name: sum(found["top1"] for found in done.values() if found["arm"] == name),
    )


if __name__ == "__main__":
    run_entry(main)
