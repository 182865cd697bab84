"""What the finished rows of the learning benchmark say: accuracies, differences, prices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from benchmarks.learning.arms import (
    PRETEXTS,
    SCRATCH,
    SEEDS,
    STEPS_PER_MINUTE,
    Row,
    Start,
    plan,
)
from benchmarks.learning.readings import Reading
from benchmarks.learning.rows import Ledger, Line
from benchmarks.learning.sets import FOLDS
from dynamonet.frozen.statistics import (
    Difference,
    Outcomes,
    accuracy_interval,
    difference,
    numbered,
)


def outcomes(ledger: Ledger, rows: Sequence[Row | Reading]) -> Outcomes | None:
    """Puts the rows of an arm on a set together; None unless one seed has all folds.

    Trainings are seeds: each was tested on every clip, fold by fold.
    """
    found = {row: ledger.lines[row.key] for row in rows if row.key in ledger.lines}
    seeds = [s for s, n in Counter(row.seed for row in found).items() if n == FOLDS]
    if not seeds:
        return None
    groups: dict[str, str] = {}
    right: list[dict[str, float]] = []
    for seed in sorted(seeds):
        own: dict[str, float] = {}
        for line in (line for row, line in found.items() if row.seed == seed):
            part = ledger.lines[line["clips"]]
            groups |= dict(zip(part["sources"], part["groups"], strict=True))
            own |= dict(zip(part["sources"], map(float, line["right"]), strict=True))
        right.append(own)
    names = sorted(groups)
    table = np.array([[own[name] for name in names] for own in right])
    return Outcomes(
        table, np.zeros(len(table), np.int64), numbered([groups[name] for name in names])
    )


def mean(found: Outcomes) -> str:
    """Returns an accuracy in per cent; * = one seed."""
    return f"{100 * found.mean:.1f}{'' if len(found.right) > 1 else '*'}"


def cell(found: Outcomes | None) -> str:
    """Returns an accuracy in per cent with half of its 95 % interval; * = one seed."""
    if found is None:
        return ""
    low, high = accuracy_interval(found)
    return f"{mean(found)} ± {50 * (high - low):.0f}"


def head(*columns: str) -> str:
    """Returns the head of a table in Markdown, all columns but the first to the right."""
    return f"| {' | '.join(columns)} |\n|---|" + "--:|" * (len(columns) - 1)


class Results:
    """What the finished rows say."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.rows = ledger, plan()

    def of(self, arm: str, name: str, **more: Any) -> Outcomes | None:
        """Returns what an arm had right on a set."""
        return outcomes(self.ledger, self.rows_of(arm, name, **more))

    def tried(self, arm: str, name: str) -> list[float]:
        """Returns each seed's accuracy on groups of the training folds; seeds draw their own."""
        rows = self.rows_of(arm, name, part="val")
        right: dict[int, str] = {}
        for row, line in zip(rows, self.ledger.of(rows), strict=True):
            right[row.seed] = right.get(row.seed, "") + line["right"]
        return [right[seed].count("1") / len(right[seed]) for seed in sorted(right)]

    def rows_of(self, arm: str, name: str, **more: Any) -> list[Row]:
        """Returns those that are finished."""
        every = product(range(FOLDS), range(SEEDS))
        wanted = [Row(arm, name, fold, seed, **more) for fold, seed in every]
        return [row for row in wanted if row.key in self.ledger.lines]

    def ahead(self, arm: str, other: str, name: str, **more: Any) -> Difference | None:
        """Compares an arm with another on the same clips, both over the seeds that they have."""
        ours, theirs = self.of(arm, name, **more), self.of(other, name, **more)
        return None if ours is None or theirs is None else difference(theirs, ours)

    def seconds(self, arm: str, name: str, **more: Any) -> float | None:
        """Returns the mean price of one, with the pretraining that it starts from here."""
        spent = [self.price(row) + self._before(row) for row in self.rows_of(arm, name, **more)]
        return float(np.mean(spent)) if spent else None

    def _before(self, row: Row) -> float:
        return 0.0 if row.start is None else self.price(row.start)

    def price(self, row: Row | Reading | Start) -> float:
        """Returns seconds of one core of the first machine, which others' are turned into."""
        line, pace = self.ledger.lines[row.key], self._pace
        first = next(iter(pace), line["machine"])
        if line["machine"] == first:
            return float(line["seconds"])
        if isinstance(row, Start):  # its steps were counted by their cost on the first machine
            return row.steps * PRETEXTS[row.pretext].cost * 60 / STEPS_PER_MINUTE
        return float(line["seconds"] * pace[first] / pace.get(line["machine"], pace[first]))

    @cached_property
    def _pace(self) -> dict[str, float]:
        """Seconds that the same fine-tuning takes on each machine, the first machine first."""
        same = [row for row in self.rows if (row.arm, row.set) == (SCRATCH, "weizmann")]
        seconds: dict[str, list[float]] = {}
        for line in self.ledger.of(row for row in same if row.longer == 1):
            seconds.setdefault(line["machine"], []).append(line["seconds"])
        return {machine: sum(each) / len(each) for machine, each in seconds.items()}

    def starts(self) -> dict[Start, Line]:
        """Returns the pretrainings that are finished."""
        wanted = {row.start for row in self.rows if row.start is not None}
        return {s: self.ledger.lines[s.key] for s in wanted if s.key in self.ledger.lines}
