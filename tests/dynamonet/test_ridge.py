from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynamonet.frozen.folds import INNER_FOLDS, inner_folds
from dynamonet.frozen.regression import Sums
from dynamonet.frozen.ridge import STRENGTHS, UNTRIED, Held, fit, likeliest_shares
from dynamonet.model.classifier import Head
from dynamonet.shards.shard_set import ShardSet


def clips(seed: int, count: int = 60, dim: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Returns inputs (B, D) whose first values tell their labels (B,)."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    x = torch.randn(count, dim, generator=draw)
    x[torch.arange(count), labels] += 3
    x[:, -1] = 7  # a value that never varies
    return x, labels


def summed(x: Tensor, labels: Tensor, folds: Tensor, parts: int = 1) -> Sums:
    counts = labels.bincount().double()
    sums = Sums(x.shape[1], len(labels) / (len(counts) * counts), int(folds.max()) + 1)
    for some in torch.arange(len(x)).chunk(parts):
        sums.add(x[some], labels[some], folds[some])
    return sums


@given(seed=st.integers(0, 99), strength=st.sampled_from(STRENGTHS))
def test_sums_of_parts_give_the_weighted_least_squares_of_all(seed: int, strength: float) -> None:
    x, labels = clips(seed)
    labels[:30] = 0  # one class is common
    found = summed(x, labels, labels * 0, parts=4).without(None).solution(strength)
    weights = (len(labels) / (3 * labels.bincount()))[labels].double()
    share = (weights / weights.sum())[:, None]
    own = x.double()[:, :-1]
    mean = (share * own).sum(0)
    z = (own - mean) / (share * (own - mean) ** 2).sum(0).sqrt()
    target = torch.eye(3).double()[labels]
    bias = (share * target).sum(0)
    left = z.T @ (weights[:, None] * z) + strength * len(x) * torch.eye(z.shape[1])
    wanted = z @ torch.linalg.solve(left, z.T @ (weights[:, None] * (target - bias))) + bias
    torch.testing.assert_close(found.scores(x), wanted, rtol=1e-6, atol=1e-8)
    head = Head(x.shape[1], 3, 0.5, eps=1e-2).eval()
    found.put_into(head, 2.0)
    torch.testing.assert_close(head(x).double(), 2 * wanted, rtol=1e-3, atol=1e-4)


def test_each_head_gets_the_share_that_its_held_out_clips_deserve() -> None:
    x, labels = clips(0)
    noise = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    folds = torch.arange(60) // 3 % 3
    heads = [Head(5, 3, 0.5).eval(), Head(4, 3, 0.5).eval()]
    sums = [summed(each, labels, folds) for each in (x, noise)]
    held = Held([x, noise], np.arange(60), labels, folds)
    found = fit(heads, sums, held, np.arange(60))
    assert found.top1 is not None and found.top1 > 0.8
    said = torch.stack([head(each) for head, each in zip(heads, (x, noise), strict=True)])
    assert said[0].std() > 5 * said[1].std()
    logits = said.mean(0)
    assert (logits.argmax(1) == labels).double().mean() > 0.8
    sure = logits.softmax(1).max(1).values.mean()
    assert float(sure.detach()) == pytest.approx(
        found.top1, abs=0.15
    )  # as often right as it is sure


@given(seed=st.integers(0, 99))
def test_of_several_networks_those_are_read_that_tell_more(seed: int) -> None:
    x, labels = clips(seed, count=120)
    draw = torch.Generator().manual_seed(seed + 1000)
    weak = x + 2 * torch.randn(x.shape, generator=draw)
    noise = torch.randn(120, 4, generator=draw)
    folds = torch.arange(120) // 3 % 3
    held = Held([weak, noise, x], np.arange(120), labels, folds)
    heads = [Head(each.shape[1], 3, 0.5).eval() for each in held.inputs]
    before = heads[1].linear.weight.clone()
    sums = [summed(each, labels, folds) for each in held.inputs]
    found = fit(heads, sums, held, np.arange(120), networks=[1, 1, 1])
    assert found.kept[0] == 0 and 2 in found.kept
    assert found.alone is not None and found.top1 is not None and found.top1 >= found.alone
    assert len(found.shares) == len(found.kept)
    if 1 not in found.kept:  # noise may be lucky
        assert torch.equal(before, heads[1].linear.weight)
    assert "not kept" in found.together(["a", "b", "c"]) or 1 in found.kept


def test_without_groups_to_choose_by_it_says_so() -> None:
    x, labels = clips(0)
    held = Held([x], np.arange(60), labels, labels * 0)
    found = fit([Head(5, 3, 0.5)], [summed(x, labels, labels * 0)], held, np.arange(60))
    assert found.top1 is None and found.strengths == [UNTRIED]
    assert "no class has two groups" in str(found)
    folds = labels.clone()  # each class in a fold of its own: never known elsewhere
    held = Held([x], np.arange(60), labels, folds)
    found = fit(
        [Head(5, 3, 0.5)], [summed(x, labels, folds)], Held([x], *held_as(folds)), folds.numpy()
    )
    assert found.top1 is None


def held_as(folds: Tensor) -> tuple[np.ndarray, Tensor, Tensor]:
    return np.arange(len(folds)), folds, folds


def test_shares_are_those_of_maximum_likelihood() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 4000, 3, generator=draw).double()
    labels = torch.multinomial((2.5 * scores[0]).softmax(1), 1, generator=draw)[:, 0]
    assert float(likeliest_shares(scores, labels)[0]) == pytest.approx(2.5, rel=0.1)


def test_inner_folds_keep_groups_whole_and_classes_apart(shard_set: Path) -> None:
    shards = ShardSet.open(str(shard_set))
    rows = shards.rows(split=1, part="train").numbers()
    folds = inner_folds(shards, rows, 0)
    assert (folds == inner_folds(shards, rows, 0)).all() and set(folds) <= set(range(INNER_FOLDS))
    names, given_groups = shards.table["source"].to_pylist(), shards.table["group"].to_pylist()
    fold_of: dict[str, int] = {}
    for row, fold in zip(rows.tolist(), folds.tolist(), strict=True):
        assert fold_of.setdefault(given_groups[row] or names[row], fold) == fold
    labels = shards.columns["label"][rows]
    for label in set(labels.tolist()):
        own = {given_groups[row] or names[row] for row in rows[labels == label].tolist()}
        assert len(set(folds[labels == label].tolist())) >= min(2, len(own))
