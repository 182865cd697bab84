from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamonet.shards.order import EpochPlan, Permutation, TarWindows, even_share, sample_seed

sizes = st.integers(1, 400)


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
    plan = EpochPlan(samples, batch * ranks, ranks, seed)
    steps = range(epoch * plan.steps, (epoch + 1) * plan.steps)
    taken = np.concatenate([plan.batch(s, r) for s in steps for r in range(ranks)])
    assert len(taken) == plan.steps * batch * ranks
    assert len(taken) == samples - plan.left_out + plan.repeated
    assert plan.left_out < batch * ranks
    if not plan.repeated:
        assert len(set(taken.tolist())) == len(taken)
    else:
        assert set(taken.tolist()) == set(range(samples))
    assert {plan.epoch_of(s) for s in steps} == {epoch}


@given(samples=sizes, ranks=st.sampled_from([1, 2, 3, 4, 6, 12]), step=st.integers(0, 50))
def test_a_step_holds_the_same_samples_for_any_number_of_ranks(
    samples: int, ranks: int, step: int
) -> None:
    one = EpochPlan(samples, 12, 1, 0)
    many = EpochPlan(samples, 12, ranks, 0)
    joined = np.concatenate([many.batch(step, rank) for rank in range(ranks)])
    assert (joined == one.batch(step, 0)).all()


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="do not divide by 3 ranks"):
        EpochPlan(10, 4, 3, 0)
    with pytest.raises(ValueError, match="needs samples"):
        EpochPlan(0, 4, 1, 0)


@given(items=st.integers(0, 100), ranks=st.integers(1, 7))
def test_evaluation_takes_every_item_once(items: int, ranks: int) -> None:
    shares = [list(even_share(items, rank, ranks)) for rank in range(ranks)]
    assert sorted(item for share in shares for item in share) == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_samples_seed_hangs_on_seed_epoch_and_sample() -> None:
    assert sample_seed(0, 1, 2) == sample_seed(0, 1, 2)
    assert len({sample_seed(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)}) == 8


tars = st.lists(st.integers(0, 12), min_size=1, max_size=200)


@given(tar_of=tars, window=st.integers(1, 15), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_windows_of_tars_take_each_sample_once_and_few_tars_at_a_time(
    tar_of: list[int], window: int, seed: int, epoch: int
) -> None:
    numbers = np.array(tar_of)
    windows = TarWindows.of(numbers, window)
    taken = windows.samples(np.arange(len(numbers)), seed, epoch)
    assert sorted(taken) == list(range(len(numbers)))
    runs = [numbers[taken[0]]]  # a tar that was left is not come back to once its window is over
    for tar in numbers[taken]:
        if tar not in runs[-window:]:
            runs.append(tar)
    assert len(runs) == len(set(tar_of))
    some = np.arange(len(numbers))[:: 1 + seed % 3]
    assert (windows.samples(some, seed, epoch) == taken[some]).all()


@given(tar_of=tars, ranks=st.sampled_from([1, 2, 3, 4]), step=st.integers(0, 60))
def test_windows_give_a_step_the_same_samples_for_any_number_of_ranks(
    tar_of: list[int], ranks: int, step: int
) -> None:
    windows = TarWindows.of(np.array(tar_of), 2)
    one = EpochPlan(len(tar_of), 12, 1, 0, windows)
    many = EpochPlan(len(tar_of), 12, ranks, 0, windows)
    joined = np.concatenate([many.batch(step, rank) for rank in range(ranks)])
    assert (joined == one.batch(step, 0)).all()


def test_epochs_read_tars_in_different_orders_and_shuffle_within_them() -> None:
    windows = TarWindows.of(np.repeat(np.arange(50), 20), 5)
    first, second = (windows.samples(np.arange(1000), 0, epoch) for epoch in (0, 1))
    assert (first == second).mean() < 0.02
    assert abs(np.corrcoef(first[:100], np.arange(100))[0, 1]) < 0.5
