"""Intervals of accuracies and of their differences, over videos, groups of videos and trainings.

Every source of chance that the data show is counted. Videos: those of one group (takes of a person,
scenes of a film) count as little more than one where they are right and wrong together. Trainings:
how far seeds of one split lie apart; with one seed an interval speaks of this one training.

An accuracy has Wilson's interval, for the number of independent videos that its variance is worth
and by Student's t. Sources: Wilson 1927; Korn and Graubard 1998, for samples in groups; Cameron,
Gelbach and Miller 2011, for two sources at once; Satterthwaite 1946, for degrees of freedom;
Agresti and Min 2005, for differences where all videos are alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Outcomes:
    """What trainings with the same settings had right. R trainings, V videos, G groups of them."""

    right: Floats  # (R, V): 1 right, 0 wrong, NaN not tested
    splits: NDArray[np.int64]  # (R,), which split each training was tested on
    groups: NDArray[np.int64]  # (V,), each from 0 to G - 1

    @property
    def each(self) -> Floats:
        """The accuracy of each training (R,)."""
        return np.asarray(np.nanmean(self.right, 1), np.float64)

    @property
    def mean(self) -> float:
        """The mean of the trainings' accuracies."""
        return float(self.each.mean())

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds; None where no two trainings differ in that alone."""
        variance, free = self.of_trainings()
        return math.sqrt(variance * len(self.each)) if free else None

    @classmethod
    def of_one(cls, right: NDArray[np.bool_], groups: Sequence[str]) -> Outcomes:
        """A single training's, whose test part are all videos (V,)."""
        return cls(right[None].astype(float), np.zeros(1, np.int64), numbered(groups))

    @property
    def num_groups(self) -> int:
        return int(self.groups.max()) + 1

    def parts(self) -> Floats:
        """Returns by how much each group moves each training's accuracy (R, G), in sum 0."""
        tested = ~np.isnan(self.right)
        moved = np.where(tested, self.right - self.each[:, None], 0.0) / tested.sum(1)[:, None]
        summed = [np.bincount(self.groups, row, self.num_groups) for row in moved]
        return np.array(summed, np.float64)

    def of_trainings(self) -> tuple[float, int]:
        """Returns what trainings add to the variance of the mean, and its degrees of freedom.

        It holds a little of what videos add, too: that each training has other videos right.
        """
        splits = [self.each[self.splits == split] for split in np.unique(self.splits)]
        free = len(self.each) - len(splits)
        apart = sum(float(((own - own.mean()) ** 2).sum()) for own in splits)
        return (apart / free / len(self.each), free) if free else (0.0, 0)


def numbered(names: Sequence[str]) -> NDArray[np.int64]:
    """Returns a number for each name, from 0, equal names the same."""
    return np.unique(np.array(names, object), return_inverse=True)[1].astype(np.int64)


def accuracy_interval(outcomes: Outcomes) -> tuple[float, float]:
    """Returns the 95 % interval of the mean accuracy."""
    mean, spread = outcomes.mean, outcomes.parts().mean(0)
    variance, free = _variance(spread, [outcomes])
    most = np.count_nonzero(~np.isnan(outcomes.right))
    worth = min(most, mean * (1 - mean) / variance) if variance else outcomes.num_groups
    square = stats.t.ppf((1 + CONFIDENCE) / 2, free) ** 2 / worth
    centre = (mean + square / 2) / (1 + square)
    half = math.sqrt(square * mean * (1 - mean) + square**2 / 4) / (1 + square)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


@dataclass(frozen=True)
class Difference:
    """How much more accurate B is than A, as a share of videos."""

    mean: float
    low: float  # its 95 % interval
    high: float
    p_value: float  # of a difference at least as large where neither is better

    def points(self, digits: int = 1) -> str:
        """Returns it in points of accuracy, with its interval."""
        mean, low, high = (f"{100 * each:+.{digits}f}" for each in (self.mean, self.low, self.high))
        return f"{mean} ({low} to {high})"


def difference(a: Outcomes, b: Outcomes) -> Difference:
    """Compares two kinds of training on the same videos in the same groups."""
    mean, videos = b.mean - a.mean, a.right.shape[1]
    spread = b.parts().mean(0) - a.parts().mean(0)
    variance, free = _variance(spread, [a, b], least=1 / (videos + 2) ** 2)
    centre, error = mean * videos / (videos + 2), math.sqrt(variance)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, free)) * error
    p_value = float(2 * stats.t.sf(abs(centre) / error, free))
    return Difference(mean, max(-1.0, centre - half), min(1.0, centre + half), p_value)


def _variance(spread: Floats, sides: Sequence[Outcomes], least: float = 0.0) -> tuple[float, float]:
    """Returns the variance over groups (G,) and trainings together, and its degrees of freedom."""
    groups = max(2, len(spread))
    videos = groups / (groups - 1) * float((spread**2).sum()) + least
    parts = [(videos, groups - 1), *(side.of_trainings() for side in sides)]
    variance = sum(part for part, _ in parts)
    below = sum(part**2 / free for part, free in parts if free)
    return variance, variance**2 / below if below else groups - 1
