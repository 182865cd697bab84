"""What frozen networks say, read in seconds: sections of docs/results.md and rows of README."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from benchmarks.learning.arms import (
    AUTO,
    LONGER,
    MOTION,
    MOTION_1,
    OWN_12,
    PEERS,
    READ_SCALES,
    SCRATCH,
    SHARES,
)
from benchmarks.learning.readings import (
    BOTH,
    DIFFERENCES,
    READINGS,
    SCALED,
    SIZES,
    SPREAD,
    TWO_HEADS,
    Reading,
)
from benchmarks.learning.results import Results, cell, head, mean, outcomes
from benchmarks.learning.sets import FOLDS, LABELLED
from benchmarks.report import Figure
from dynamonet.frozen.statistics import Difference, Outcomes, difference

_SEEDS = range(3)
_README = {
    MOTION: f"**`--pretrained {MOTION}`, frozen**",
    OWN_12: "**pretrained here, 12 minutes**, frozen",
}
_TITLES = {SCRATCH: "random network", OWN_12: OWN_12, MOTION: f"`{MOTION}`"}
_TITLES |= {MOTION_1: f"`{MOTION_1}`", BOTH: f"`{MOTION}` and own, together"} | {
    p: p for p in PEERS
}
SHOWN = SIZES[-1]  # in README
Size = tuple[int, int]


class Read:
    """What the readings say."""

    def __init__(self, results: Results) -> None:
        self.results, self.ledger = results, results.ledger

    def rows(
        self, arm: str, name: str, way: str, size: Size, share: float = 1.0, squares: int = 1
    ) -> list[Reading]:
        """Returns those that are finished."""
        wanted = [
            Reading(arm, name, fold, way, *size, share, seed, squares)
            for fold, seed in product(range(FOLDS), _SEEDS)
        ]
        return [row for row in wanted if row.key in self.ledger.lines]

    def of(
        self, arm: str, name: str, way: str, size: Size, share: float = 1.0, squares: int = 1
    ) -> Outcomes | None:
        return outcomes(self.ledger, self.rows(arm, name, way, size, share, squares))

    def seconds(self, arm: str, name: str, way: str, size: Size, squares: int = 1) -> float | None:
        """Returns the mean price of a reading, without that of the pretraining."""
        rows = self.rows(arm, name, way, size, squares=squares)
        spent = [self.results.price(row) for row in rows]
        return float(np.mean(spent)) if spent else None

    def ahead(
        self, name: str, size: Size, *, longer: int = 1, share: float = 1.0, arm: str = MOTION
    ) -> Difference | None:
        """Compares two heads on a frozen network with a training from scratch."""
        ours = self.of(arm, name, TWO_HEADS, size, share)
        theirs = self.results.of(SCRATCH, name, longer=longer, share=share)
        return None if ours is None or theirs is None else difference(theirs, ours)


def sections(results: Results) -> Iterator[str]:
    """Yields the lines of the page; none before a reading is finished."""
    read = Read(results)
    if not any(read.rows(MOTION, name, TWO_HEADS, size) for name, size in product(LABELLED, SIZES)):
        return
    yield (
        "## Frozen, read in seconds\n\nTop-1 in per cent of ridge regression on a network that is "
        "not trained on labels (`--recipe ridge`): strength and the heads' weights by inner folds "
        "of groups, four clips a video. *Field*: the named numbers of motion; *two heads*: theirs "
        "and that of mean and deviation of the features; *differences*: the same statistics of "
        "plain differences of frames, by no network. Seconds are of one core, weizmann, fights, "
        "jhmdb: the network's look at the training clips, and the fit.\n"
    )
    yield head("network", "clips", "read", *LABELLED, "seconds")
    for size, arm, way in product(SIZES, _TITLES, READINGS):
        cells = [cell(read.of(arm, name, way, size)) for name in LABELLED]
        if any(cells):
            title = "none" if way == DIFFERENCES else _TITLES[arm]
            spent = [read.seconds(arm, name, way, size) for name in LABELLED]
            prices = ", ".join("" if each is None else f"{each:.0f}" for each in spent)
            shown = f"{size[0]} x {size[1]} px"
            yield f"| {title} | {shown} | {way} | {' | '.join(cells)} | {prices} |"
    yield (
        "\nPoints that two heads are ahead of a training from scratch (8 x 48 px), with as many "
        "steps as above and with four times as many, and of mean and deviation alone:\n"
    )
    yield head("network", "clips", "more than", *LABELLED)
    for arm, size, longer in product((MOTION, OWN_12), SIZES, (1, LONGER)):
        gains = [read.ahead(name, size, longer=longer, arm=arm) for name in LABELLED]
        other = SCRATCH if longer == 1 else f"{SCRATCH}, {longer} x the steps"
        yield from _gains(arm, size, other, gains)
    for size, other in product(SIZES, (MOTION, OWN_12)):
        pairs = [[read.of(arm, n, TWO_HEADS, size) for arm in (other, BOTH)] for n in LABELLED]
        gains = [None if a is None or b is None else difference(a, b) for a, b in pairs]
        yield from _gains(BOTH, size, _TITLES[other], gains)
    for arm, size in product((MOTION, OWN_12), SIZES):
        pairs = [[read.of(arm, n, way, size) for way in (SPREAD, TWO_HEADS)] for n in LABELLED]
        gains = [None if a is None or b is None else difference(a, b) for a, b in pairs]
        yield from _gains(arm, size, SPREAD, gains)
    yield from _squares(read)
    yield from _auto(results)
    yield from _scales(read)
    yield "\nWith fewer labels, other labels for each of three seeds of `motion`:\n"
    shares = (*SHARES, 1.0)
    yield head("set", "network", "clips", *(f"{share:.0%}" for share in shares))
    for name, arm, size in product(LABELLED, (MOTION, OWN_12), SIZES):
        cells = [cell(read.of(arm, name, TWO_HEADS, size, share)) for share in shares]
        if any(cells):
            yield f"| {name} | {_TITLES[arm]} | {size[0]} x {size[1]} px | {' | '.join(cells)} |"


def _squares(read: Read) -> Iterator[str]:
    """Yields what three squares of a wide picture give, which is the default of a fine-tuning."""
    lines = list[str]()
    for arm, size in product((MOTION, MOTION_1, OWN_12, BOTH), SIZES):
        pairs = [
            [read.of(arm, name, TWO_HEADS, size, squares=each) for each in (1, 3)]
            for name in LABELLED
        ]
        cells = [f"{mean(b)}, {difference(a, b).points()}" for a, b in pairs if a and b]
        spent = [read.seconds(arm, name, TWO_HEADS, size, squares=3) for name in LABELLED]
        prices = ", ".join(f"{each:.0f}" for each in spent if each is not None)
        if len(cells) == len(LABELLED):
            shown = f"{size[0]} x {size[1]} px"
            lines.append(f"| {_TITLES[arm]} | {shown} | {' | '.join(cells)} | {prices} |")
    if lines:
        yield (
            "\nThree squares along the longer side, weighed by how much changes in each, and what "
            "they are ahead of the middle one (213 of the 300 clips of fights are wide; those of "
            "weizmann and jhmdb are 5:4 and 4:3):\n"
        )
        yield head("network", "clips", *LABELLED, "seconds")
        yield from lines


def _scales(read: Read) -> Iterator[str]:
    """Yields what more videos give, and more clips of them."""
    found = {
        (arm.clips, arm.videos, name): read.of(arm.name, name, TWO_HEADS, SIZES[0])
        for arm, name in product(READ_SCALES, SCALED)
    }
    if not all(found.values()):
        return
    clips = sorted({arm.clips or 0 for arm in READ_SCALES})
    videos = sorted({arm.videos or 0 for arm in READ_SCALES})
    yield (
        "\nOur own network by how many videos it was pretrained on, and how many clips of them it "
        "saw (8 x 48 px, two seeds):\n"
    )
    yield head("set", "videos", *(f"{each:,} clips" for each in clips))
    for name, own in product(SCALED, videos):
        cells = [cell(found[seen, own, name]) for seen in clips]
        yield f"| {name} | {own} | {' | '.join(cells)} |"
    for name in SCALED:
        pairs = [[found[seen, own, name] for own in (videos[0], videos[-1])] for seen in clips]
        gains = [difference(few, many).points() for few, many in pairs if few and many]
        yield f"| {name} | the more ahead | {' | '.join(gains)} |"


def _auto(results: Results) -> Iterator[str]:
    """Yields what `--recipe auto` gives, which is the default of a fine-tuning."""
    found = {name: results.of(AUTO.name, name, recipe="auto") for name in LABELLED}
    if not all(found.values()):
        return
    yield (
        f"\nFirst seconds, then training, and the better of both is kept (`--recipe auto` with "
        f"`{MOTION}`, 16 x 64 px): ridge, then a training with as many steps as above and "
        "colours that vary; a quarter of the training part's groups chooses, then the better is "
        "done again with all:\n"
    )
    yield head("", *LABELLED)
    yield f"| top-1 | {' | '.join(cell(each) for each in found.values())} |"
    for longer in (1, LONGER):
        gains = [auto_ahead(results, name, longer) for name in LABELLED]
        cells = ["" if gain is None else gain.points() for gain in gains]
        title = SCRATCH if longer == 1 else f"{SCRATCH}, {longer} x the steps"
        yield f"| ahead of {title} | {' | '.join(cells)} |"
    kept, spent = list[str](), list[str]()
    for name in LABELLED:
        rows = results.rows_of(AUTO.name, name, recipe="auto")
        count = Counter(results.ledger.lines[row.key]["keeps"] for row in rows)
        kept.append(", ".join(f"{recipe} {folds}" for recipe, folds in sorted(count.items())))
        spent.append(f"{np.mean([results.price(row) for row in rows]):,.0f}")
    yield f"| folds that keep | {' | '.join(kept)} |"
    yield f"| seconds | {' | '.join(spent)} |"


def auto_ahead(results: Results, name: str, longer: int) -> Difference | None:
    """Compares `auto` with a training from scratch of 8 x 48 px."""
    ours = results.of(AUTO.name, name, recipe="auto")
    theirs = results.of(SCRATCH, name, longer=longer)
    return None if ours is None or theirs is None else difference(theirs, ours)


def _gains(arm: str, size: Size, other: str, gains: Sequence[Difference | None]) -> Iterator[str]:
    if any(gains):
        cells = ["" if gain is None else gain.points() for gain in gains]
        yield f"| {_TITLES[arm]} | {size[0]} x {size[1]} px | {other} | {' | '.join(cells)} |"


def readme_rows(results: Results) -> list[str]:
    """Returns the rows of README's table: points against scratch at its usual steps."""
    read, rows = Read(results), list[str]()
    for arm, title in _README.items():
        cells = []
        for name in LABELLED:
            found, gain = read.of(arm, name, TWO_HEADS, SHOWN), read.ahead(name, SHOWN, arm=arm)
            if found is None or gain is None:
                return rows
            cells.append(f"{mean(found)}, {gain.points()}")
        seconds = read.seconds(arm, LABELLED[0], TWO_HEADS, SHOWN) or 0.0
        if start := Reading(arm, LABELLED[0], 0, TWO_HEADS).start:
            seconds += results.price(start)
        rows.append(f"| {title} | {' | '.join(cells)} | {seconds:,.0f} |")
    return rows


def figures(results: Results) -> list[Figure]:
    """Returns the figures that the claims on frozen networks rest on, in points of accuracy."""
    read, found = Read(results), list[Figure]()
    for name in LABELLED:
        if gain := read.ahead(name, SHOWN, longer=LONGER):
            what = f"frozen_motion_not_behind_scratch_at_{LONGER}_x_the_steps_{name}"
            found.append(Figure(what, 100 * gain.high, 0.0))
        ours = read.seconds(MOTION, name, TWO_HEADS, SHOWN)
        theirs = results.seconds(SCRATCH, name, longer=LONGER)
        if ours and theirs:
            found.append(
                Figure(f"frozen_motion_times_faster_than_that_{name}", theirs / ours, 20.0)
            )
        if gain := read.ahead(name, SHOWN, share=SHARES[0]):
            what = f"frozen_motion_ahead_of_scratch_with_10%_{name}"
            found.append(Figure(what, 100 * gain.mean, 0.0))
    for name in LABELLED:
        if gain := auto_ahead(results, name, LONGER):
            least, what = (gain.high, "not_behind") if name == "fights" else (gain.low, "ahead_of")
            found.append(Figure(f"auto_{what}_scratch_at_{LONGER}_x_{name}", 100 * least, 0.0))
    more = [[read.of(MOTION, n, way, SHOWN) for way in (SPREAD, TWO_HEADS)] for n in LABELLED]
    means = [b.mean - a.mean for a, b in more if a is not None and b is not None]
    if means:
        found.append(Figure("field_adds_to_mean_and_std", 100 * float(np.mean(means)), 2.0))
    return found
