"""Does the panel tell learning from collapse?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dynamonet.errors import UserError
from dynamonet.model.prediction import FramePairs, squared_errors
from dynamonet.shards.rows import RowSet
from dynamonet.shards.shard_set import ShardSet
from dynamonet.training.features import NEIGHBOURS, TEMPERATURE, KnnBank
from pretrain.collapse import effective_rank, spectrum, spread
from pretrain.plots import learning
from pretrain.probe import probe_metrics, probe_rows
from pretrain.validation import skill_metrics


def blobs(num: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns features (num, 16) in one blob a class, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(classes, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(num) % classes
    return centres[labels] + torch.randn(num, 16, generator=generator), labels


def test_rank_counts_the_directions_in_which_features_vary() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(200, 12, generator=generator)).Q
    basis = torch.linalg.qr(basis - basis.mean(0)).Q  # centred and orthogonal
    for rank in (1, 3, 12):
        features = basis[:, :rank] @ torch.randn(12, 12, generator=generator)[:rank].mul(0)
        features[:, :rank] = basis[:, :rank]
        assert effective_rank(features + 5.0) == pytest.approx(rank, rel=1e-4)
    assert float(spectrum(basis).sum()) == pytest.approx(1)


def test_a_collapse_shows_in_rank_and_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    alive = torch.randn(64, 32, generator=generator)
    assert effective_rank(alive) > 20 and spread(alive) == pytest.approx(1, abs=0.1)
    same = torch.rand(1, 32, generator=generator).expand(64, 32)
    assert effective_rank(same) == 0 and spread(same) == pytest.approx(0, abs=1e-6)
    one_line = same + torch.randn(64, 1, generator=generator) * alive[:1]
    assert effective_rank(one_line) == pytest.approx(1, abs=0.01)


def test_rounding_is_no_direction() -> None:
    same = torch.full((64, 32), 1.0) + 1e-7 * torch.randn(64, 32)
    assert effective_rank(same) == 0


def test_neighbours_vote_as_a_plain_loop_over_them_would() -> None:
    known, labels = blobs(60, 5, seed=1)
    asked = blobs(20, 5, seed=2)[0] * 0.2 + torch.randn(20, 16)  # near the borders
    bank = KnnBank.of(known, labels)
    found, scaled = bank.votes(asked, 5).argmax(1), bank.standardised(asked)
    for x, guess in zip(scaled, found.tolist(), strict=True):
        similar = [float(F.cosine_similarity(x, y, dim=0)) for y in bank.known]
        votes = dict.fromkeys(range(5), 0.0)
        for place in sorted(range(60), key=lambda i: -similar[i])[:NEIGHBOURS]:
            votes[int(labels[place])] += np.exp(similar[place] / TEMPERATURE)
        assert guess == max(votes, key=lambda label: votes[label])


def test_the_probe_reads_classes_off_features_that_hold_them_and_not_off_noise() -> None:
    known, asked = blobs(90, 3, seed=1), blobs(60, 3, seed=2)
    found = probe_metrics(*known, *asked)
    assert found["probe/knn_top1"] > 0.95 and found["probe/linear_top1"] > 0.95
    assert found["probe/commonest_top1"] == pytest.approx(1 / 3)
    assert (found["probe/clips_known"], found["probe/clips_asked"]) == (90, 60)
    noise = probe_metrics(torch.randn(90, 16), known[1], torch.randn(60, 16), asked[1])
    assert noise["probe/knn_top1"] < 0.6 and noise["probe/linear_top1"] < 0.6
    dead = probe_metrics(torch.ones(90, 16), known[1], torch.ones(60, 16), asked[1])
    assert dead["probe/knn_top1"] == pytest.approx(1 / 3)


def test_the_probe_never_looks_at_test_videos_and_keeps_videos_whole(shard_set: Path) -> None:
    shards = ShardSet.open(str(shard_set))
    rows = probe_rows(shards, 1, 1000)
    known, asked = set(rows.known.tolist()), set(rows.asked.tolist())
    assert known and asked and not known & asked
    assert known | asked == set(shards.rows(split=1, part="train").numbers().tolist())
    sources = shards.table["source"].to_pylist()
    assert not {sources[row] for row in known} & {sources[row] for row in asked}
    fewer = probe_rows(shards, 1, 5)
    assert len(fewer.known) + len(fewer.asked) == 5
    assert set(fewer.known.tolist()) <= known


def test_sets_that_cannot_be_probed_are_refused(
    shard_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ShardSet.open(str(shard_set))
    plain = shards.card.model_copy(update={"classes": ()})
    unlabelled = replace(shards, card=plain)
    one = RowSet.of(shards.rows(split=1, part="train")[[0]], len(shards))
    monkeypatch.setattr(ShardSet, "rows", lambda *_, **__: one)
    with pytest.raises(UserError, match="too few videos to keep some apart"):
        probe_rows(shards, 1, 100)
    with pytest.raises(UserError, match=r"(?s)probe\.shards: .* has no labels.*--dataset folder"):
        probe_rows(unlabelled, 1, 10)


def test_skill_is_told_for_each_horizon_beyond_the_clip() -> None:
    generator = torch.Generator().manual_seed(0)
    true, copied = (torch.randn(2, 3, 4, 16, 16, generator=generator) for _ in range(2))
    predicted = copied.clone()
    predicted[:, :, 3] = true[:, :, 3]  # only the last frame is right
    pair = FramePairs(predicted, true, copied)
    errors = squared_errors(pair, 3, upper_bound=True)
    found = skill_metrics(errors, num_beyond=2)
    assert found["val/skill"] == pytest.approx(float(errors.total.skill), rel=1e-5)
    assert found["val/skill_h1"] == 0 and found["val/skill_h2"] == 1
    assert 0 < found["val/skill_upper_bound_h1"] < 1 and "val/skill_h3" not in found


def test_the_learning_picture_has_a_curve_for_everything_it_is_given() -> None:
    spectra = {"features": torch.tensor([0.7, 0.3, 0.0]), "DMR": torch.zeros(2)}
    figure = learning(torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4]), 1, spectra)
    left, right = figure.axes
    assert [line.get_label() for line in right.lines] == ["features", "DMR"]
    assert np.asarray(left.lines[2].get_ydata()) == pytest.approx([0.1, 0.2])
