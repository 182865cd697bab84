"""Do intervals hold the truth 95 times in 100? Simulated, with all that chance does to runs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from dynamonet.frozen.statistics import Outcomes, accuracy_interval, difference

TIMES = 1000  # simulated experiments; a share of 0.95 is then known to 0.014, twice its error
ACCURACY = 0.7


def simulated(
    rng: np.random.Generator, *, seeds: int, videos: int, group: int, deviation: float, alike: bool
) -> Outcomes:
    """Draws an experiment whose expected accuracy is `ACCURACY`.

    Args:
        group: Videos of a group, which are equally hard.
        deviation: Of trainings.
        alike: All groups are equally hard.
    """
    groups = np.repeat(np.arange(videos // group), group)
    hard = np.full(videos, ACCURACY)
    if not alike:
        hard = rng.beta(ACCURACY, 1 - ACCURACY, videos // group)[groups]
    chance = hard + rng.normal(0, deviation, (seeds, 1))
    right = (rng.random((seeds, videos)) < chance).astype(float)
    return Outcomes(right, np.ones(seeds, np.int64), groups)


@pytest.mark.parametrize(
    ("seeds", "videos", "group", "deviation", "alike"),
    [
        (1, 20, 1, 0.0, True),
        (1, 100, 1, 0.0, True),
        (1, 1000, 1, 0.0, True),
        (1, 100, 5, 0.0, False),  # 20 groups
        (3, 200, 1, 0.05, False),
        (5, 200, 5, 0.03, False),
    ],
)
def test_intervals_of_accuracies_cover_the_truth(
    seeds: int, videos: int, group: int, deviation: float, alike: bool
) -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(TIMES):
        low, high = accuracy_interval(
            simulated(
                rng, seeds=seeds, videos=videos, group=group, deviation=deviation, alike=alike
            )
        )
        covered += low <= ACCURACY <= high
    assert 0.93 <= covered / TIMES <= 0.985


@pytest.mark.parametrize(
    ("seeds", "videos", "group", "deviation"),
    [(1, 100, 1, 0.0), (1, 100, 5, 0.0), (3, 200, 1, 0.05), (3, 1000, 1, 0.05), (5, 200, 5, 0.03)],
)
def test_of_methods_that_are_equal_one_in_twenty_is_found_better(
    seeds: int, videos: int, group: int, deviation: float
) -> None:
    rng, found = np.random.default_rng(0), 0
    for _ in range(TIMES):
        hard = rng.beta(ACCURACY, 1 - ACCURACY, videos // group).repeat(group)
        groups = np.repeat(np.arange(videos // group), group)
        sides = [
            Outcomes(
                (rng.random((seeds, videos)) < hard + rng.normal(0, deviation, (seeds, 1))).astype(
                    float
                ),
                np.ones(seeds, np.int64),
                groups,
            )
            for _ in range(2)
        ]
        compared = difference(*sides)
        found += compared.p_value < 0.05
        assert (compared.p_value < 0.05) == (not compared.low <= 0 <= compared.high)
    assert found / TIMES <= 0.065


def outcomes(right: list[int], groups: list[str] | None = None) -> Outcomes:
    names = groups or [str(number) for number in range(len(right))]
    return Outcomes.of_one(np.array(right, bool), names)


def test_an_accuracy_of_independent_videos_has_wilsons_interval() -> None:
    low, high = accuracy_interval(outcomes([1] * 700 + [0] * 300))
    expected = binomtest(700, 1000).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=2e-4)
    assert accuracy_interval(outcomes([1] * 10)) == pytest.approx((0.66, 1), abs=0.01)
    assert accuracy_interval(outcomes([0] * 10)) == pytest.approx((0, 0.34), abs=0.01)
    of_two = accuracy_interval(outcomes([1] * 10, ["a"] * 5 + ["b"] * 5))
    assert of_two[0] < 0.1  # ten videos of two groups say little


def test_the_mean_of_splits_weighs_splits_alike_and_counts_a_video_of_two_once() -> None:
    nan = np.nan
    right = np.array([[1, 1, 1, 0, nan, nan], [nan, nan, nan, 0, 0, 1.0]])
    both = Outcomes(right, np.array([1, 2]), np.arange(6))
    assert both.mean == pytest.approx((3 / 4 + 1 / 3) / 2) and both.deviation is None
    assert both.parts().sum(1) == pytest.approx([0, 0])
    low, high = accuracy_interval(both)
    assert 0 <= low < both.mean < high <= 1


def test_a_difference_of_the_same_runs_is_none_and_its_interval_is_not_empty() -> None:
    a = [1.0] * 40 + [0.0] * 40
    b = list(a)
    b[:5], b[40:54] = [0.0] * 5, [1.0] * 14
    found = difference(outcomes([*map(int, a)]), outcomes([*map(int, b)]))
    assert found.mean == pytest.approx(9 / 80) and found.low < 9 / 80 < found.high
    assert found.p_value == pytest.approx(binomtest(5, 19).pvalue, rel=0.5)  # McNemar's
    same = difference(outcomes([*map(int, a)]), outcomes([*map(int, a)]))
    assert same.mean == 0 and -0.05 < same.low < 0 < same.high < 0.05 and same.p_value == 1
