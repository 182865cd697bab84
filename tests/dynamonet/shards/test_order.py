from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dynamonet.shards.order import (
    EpochPlan,
    Permutation,
    Source,
    TarWindows,
    even_share,
    sample_seed,
    shared_out,
)

sizes = st.integers(1, 400)


def plan_of(
    samples: int, batch: int, ranks: int, seed: int, windows: TarWindows | None = None
) -> EpochPlan:
    """Returns the plan of one set."""
    return EpochPlan((Source(samples, samples, windows=windows),), batch, ranks, seed)


def places(plan: EpochPlan, steps: Iterable[int]) -> NDArray[np.int64]:
    """Returns what all ranks take, step by step."""
    return np.concatenate([plan.batch(s, r)[0] for s in steps for r in range(plan.num_ranks)])


@given(n=sizes, seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
def test_an_epoch_is_a_permutation_of_the_index(n: int, seed: int, epoch: int) -> None:
    order = Permutation(n, seed, epoch)(np.arange(n))
    assert sorted(order) == list(range(n))


def test_epochs_and_seeds_differ_and_neighbours_are_not_correlated() -> None:
    n = 20_000
    orders = [Permutation(n, seed, epoch)(np.arange(n)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert (orders[0] == orders[1]).mean() < 0.01
    assert (orders[0] == orders[2]).mean() < 0.01
    assert abs(np.corrcoef(orders[0][:-1], orders[0][1:])[0, 1]) < 0.03


def test_an_entry_of_a_huge_permutation_costs_no_memory() -> None:
    order = Permutation(100_000_000_000, 0, 0)
    found = order(np.array([0, 1, 99_999_999_999]))
    assert len(set(found.tolist())) == 3
    assert ((found >= 0) & (found < 100_000_000_000)).all()


@given(
    samples=sizes,
    batch=st.integers(1, 12),
    ranks=st.integers(1, 5),
    seed=st.integers(0, 100),
    epoch=st.integers(0, 3),
)
def test_every_rank_takes_equal_steps_and_no_sample_twice(
    samples: int, batch: int, ranks: int, seed: int, epoch: int
) -> None:
    plan = plan_of(samples, batch * ranks, ranks, seed)
    steps = range(epoch * plan.steps, (epoch + 1) * plan.steps)
    taken = places(plan, steps)
    assert len(taken) == plan.steps * batch * ranks
    assert len(taken) == samples - plan.left_out + plan.repeated
    assert plan.left_out < batch * ranks
    if not plan.repeated:
        assert len(set(taken.tolist())) == len(taken)
    else:
        assert set(taken.tolist()) == set(range(samples))
    assert {n for s in steps for n in plan.batch(s, 0)[1].tolist()} == {epoch}


@given(samples=sizes, ranks=st.sampled_from([1, 2, 3, 4, 6, 12]), step=st.integers(0, 50))
def test_a_step_holds_the_same_samples_for_any_number_of_ranks(
    samples: int, ranks: int, step: int
) -> None:
    one, many = (plan_of(samples, 12, count, 0) for count in (1, ranks))
    assert (places(one, [step]) == places(many, [step])).all()


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="do not divide by 3 ranks"):
        plan_of(10, 4, 3, 0)
    with pytest.raises(ValueError, match="needs samples"):
        plan_of(0, 4, 1, 0)


@given(items=st.integers(0, 100), ranks=st.integers(1, 7))
def test_evaluation_takes_every_item_once(items: int, ranks: int) -> None:
    shares = [list(even_share(items, rank, ranks)) for rank in range(ranks)]
    assert sorted(item for share in shares for item in share) == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_samples_seed_hangs_on_seed_epoch_and_sample() -> None:
    assert sample_seed(0, 1, 2) == sample_seed(0, 1, 2)
    assert len({sample_seed(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)}) == 8


tars = st.lists(st.integers(1, 20), min_size=1, max_size=13)


def windows_of(tar_sizes: list[int], window: int) -> TarWindows:
    return TarWindows(np.cumsum([0, *tar_sizes]), window)


@given(tar_sizes=tars, window=st.integers(1, 15), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_windows_of_tars_take_each_sample_once_and_few_tars_at_a_time(
    tar_sizes: list[int], window: int, seed: int, epoch: int
) -> None:
    numbers = np.repeat(np.arange(len(tar_sizes)), tar_sizes)  # of each sample's tar
    windows = windows_of(tar_sizes, window)
    taken = windows.samples(np.arange(len(numbers)), seed, epoch)
    assert sorted(taken) == list(range(len(numbers)))
    runs = [numbers[taken[0]]]  # a tar that was left is not come back to once its window is over
    for tar in numbers[taken]:
        if tar not in runs[-window:]:
            runs.append(tar)
    assert len(runs) == len(tar_sizes)
    some = np.arange(len(numbers))[:: 1 + seed % 3]
    assert (windows.samples(some, seed, epoch) == taken[some]).all()


@given(tar_sizes=tars, ranks=st.sampled_from([1, 2, 3, 4]), step=st.integers(0, 60))
def test_windows_give_a_step_the_same_samples_for_any_number_of_ranks(
    tar_sizes: list[int], ranks: int, step: int
) -> None:
    windows = windows_of(tar_sizes, 2)
    one, many = (plan_of(sum(tar_sizes), 12, count, 0, windows) for count in (1, ranks))
    assert (places(one, [step]) == places(many, [step])).all()


def test_epochs_read_tars_in_different_orders_and_shuffle_within_them() -> None:
    windows = windows_of([20] * 50, 5)
    first, second = (windows.samples(np.arange(1000), 0, epoch) for epoch in (0, 1))
    assert (first == second).mean() < 0.02
    assert abs(np.corrcoef(first[:100], np.arange(100))[0, 1]) < 0.5


sets = st.lists(st.tuples(st.integers(1, 60), st.floats(0.1, 10)), min_size=1, max_size=5)


def mixed(parts: list[tuple[int, float]], batch: int, ranks: int, windowed: bool) -> EpochPlan:
    """Returns the plan of several sets with shares, each in tars of three samples or one."""
    samples = [count for count, _ in parts]
    firsts = np.cumsum([0, *samples[:-1]]).tolist()
    sources = [
        Source(count, taken, first, windows_of([1] * (count % 3) + [3] * (count // 3), 2))
        if windowed
        else Source(count, taken, first)
        for count, taken, first in zip(
            samples, shared_out(samples, [share for _, share in parts]), firsts, strict=True
        )
    ]
    return EpochPlan(tuple(sources), batch, ranks, 5)


@given(parts=sets, ranks=st.sampled_from([1, 2, 4]), windowed=st.booleans())
def test_several_sets_are_mixed_by_their_shares_and_each_pass_takes_each_sample_once(
    parts: list[tuple[int, float]], ranks: int, windowed: bool
) -> None:
    plan = mixed(parts, 4, ranks, windowed)
    steps = range(plan.steps * (1 if plan.repeated else 3))
    found = [plan.batch(s, r) for s in steps for r in range(ranks)]
    taken, passes = (np.concatenate(column) for column in zip(*found, strict=True))
    assert (taken == places(mixed(parts, 4, 1, windowed), steps)).all()
    epoch = plan.steps * 4
    for source in plan.sources:
        own = (taken >= source.first) & (taken < source.first + source.samples)
        if not plan.repeated:
            share = source.taken / plan.num_samples
            for begin in range(0, epoch, 4):  # any stretch of an epoch holds the share
                assert (
                    abs(own[begin : begin + 16].sum() - 16 * share) <= len(parts) + 1 or epoch < 16
                )
            pairs = list(zip(taken[own].tolist(), passes[own].tolist(), strict=True))
            assert len(set(pairs)) == len(pairs)  # no sample twice in a pass
        assert own.any() or source.taken < 4


def test_without_shares_an_epoch_of_several_sets_takes_each_sample_once() -> None:
    plan = EpochPlan((Source(30, 30), Source(10, 10, 30), Source(8, 8, 40)), 4, 2, 0)
    for epoch in range(3):
        taken = places(plan, range(12 * epoch, 12 * (epoch + 1)))
        assert sorted(taken.tolist()) == list(range(48))
