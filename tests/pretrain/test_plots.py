"""Does the panel tell learning from collapse?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dynamonet.model.prediction import FramePairs, squared_errors
from pretrain.collapse import effective_rank, spectrum, spread
from pretrain.plots import learning
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
