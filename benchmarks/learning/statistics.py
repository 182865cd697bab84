"""What rows say together: accuracy over clips and seeds, differences, intervals, tests.

Clips of one group (a person, a scene) are not independent: intervals resample groups, tests swap
the arms on whole groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 9999
DETECTABLE = 2.8  # standard errors that a difference must have to be found 4 times in 5, at 5 %


@dataclass(frozen=True)
class Scored:
    """An arm on a set: every clip, averaged over seeds."""

    clips: dict[str, float]  # source -> share of the trainings that had it right
    groups: dict[str, str]  # source -> group
    seeds: list[float]  # accuracy over all folds of each seed

    @property
    def accuracy(self) -> float:
        return float(np.mean(list(self.clips.values())))

    @property
    def spread(self) -> float:
        """Standard deviation over seeds."""
        return float(np.std(self.seeds, ddof=1)) if len(self.seeds) > 1 else 0.0


def scored(rows: Sequence[dict[str, Any]], parts: dict[str, dict[str, Any]]) -> Scored:
    """Puts the rows of an arm on a set together.

    Args:
        rows: Finished rows, of all folds and seeds.
        parts: Lines that tell which clips were tested.
    """
    right: dict[str, list[int]] = {}
    groups: dict[str, str] = {}
    by_seed: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        part, said = parts[row["part"]], [int(each) for each in row["right"]]
        for source, group, correct in zip(part["sources"], part["groups"], said, strict=True):
            right.setdefault(source, []).append(correct)
            groups[source] = group
        by_seed.setdefault((row["seed"], row["repeat"]), []).extend(said)
    means = {source: float(np.mean(values)) for source, values in right.items()}
    return Scored(means, groups, [float(np.mean(values)) for values in by_seed.values()])


@dataclass(frozen=True)
class Difference:
    """How much better an arm is than another, as a share of clips."""

    mean: float
    low: float  # 95 % interval
    high: float
    p_value: float  # of one at least as large where neither arm is better
    detectable: float  # that would be found 4 times in 5


def difference(pairs: Sequence[tuple[Scored, Scored]]) -> Difference:
    """Compares two arms on the same clips.

    Args:
        pairs: (better?, baseline) on each set; several sets weigh the same.

    The interval is a percentile bootstrap over groups; the test flips the sign of the difference on
    each group at random.
    """
    rng = np.random.default_rng(0)
    means, drawn, flipped = [], [], []
    for one, other in pairs:
        gains, sizes = _by_group(one, other)
        means.append(gains.sum() / sizes.sum())
        counts = rng.multinomial(len(gains), [1 / len(gains)] * len(gains), RESAMPLES)
        drawn.append((counts @ gains) / (counts @ sizes))
        flipped.append(rng.choice([-1.0, 1.0], (RESAMPLES, len(gains))) @ gains / sizes.sum())
    mean, resampled = float(np.mean(means)), np.mean(drawn, 0)
    as_large = np.abs(np.mean(flipped, 0)) >= abs(mean) - 1e-12
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Difference(
        mean,
        float(low),
        float(high),
        float((as_large.sum() + 1) / (RESAMPLES + 1)),
        DETECTABLE * float(resampled.std()),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for their number. Source: Holm 1979."""
    corrected, worst = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values).tolist()):
        worst = max(worst, min(1.0, p_values[index] * (len(p_values) - place)))
        corrected[index] = worst
    return corrected


def _by_group(one: Scored, other: Scored) -> tuple[Floats, Floats]:
    """Returns the summed gains and the number of clips of each group (G,)."""
    names = sorted(set(one.groups.values()))
    place = {name: index for index, name in enumerate(names)}
    gains, sizes = np.zeros(len(names)), np.zeros(len(names))
    for source, correct in one.clips.items():
        gains[place[one.groups[source]]] += correct - other.clips[source]
        sizes[place[one.groups[source]]] += 1
    return gains, sizes
