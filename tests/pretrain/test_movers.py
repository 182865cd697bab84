"""Movers: what they do to clips, and that their displacements are true."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from dynamonet.model.config import FilterConfig
from dynamonet.model.filtering import apply_filters
from pretrain.movers import displacement_loss, paste_movers, soft_taps
from pretrain.settings import PretrainSettings

EVERY_PIXEL = FilterConfig(size=11, levels=(1,), cell_px=1)


@pytest.fixture
def frames() -> Tensor:
    torch.manual_seed(0)
    return 3 * F.avg_pool3d(torch.randn(6, 3, 6, 48, 48), (1, 5, 5), 1, (0, 2, 2))


def test_filters_made_of_the_displacements_move_the_movers(frames: Tensor) -> None:
    moved = paste_movers(frames, EVERY_PIXEL, 1.0)
    assert moved.shift.shape == (6, 5, 2, 48, 48) and moved.known.shape == (6, 5, 48, 48)
    now, after = moved.frames[:, :, :-1], moved.frames[:, :, 1:]
    predicted = apply_filters(now, soft_taps(moved.shift, 11), 1.0)
    within = moved.known & (moved.shift.abs().amax(2) < 5)
    assert 0.03 < within.float().mean() < 0.3

    def error(guess: Tensor) -> Tensor:
        return (guess - after).square().sum(1)[within].mean()

    assert error(predicted) < 0.25 * error(now)


def test_displacements_are_told_at_the_filters_places(frames: Tensor) -> None:
    torch.manual_seed(1)
    fine = paste_movers(frames, EVERY_PIXEL, 1.0)
    torch.manual_seed(1)
    coarse = paste_movers(frames, EVERY_PIXEL.model_copy(update={"cell_px": 20}), 1.0)
    assert torch.equal(coarse.frames, fine.frames)
    places = torch.tensor([10, 30, 47])  # the last one is centred outside
    assert torch.equal(coarse.known, fine.known[..., places, :][..., places])
    torch.testing.assert_close(coarse.shift, fine.shift[..., places, :][..., places])


def test_only_a_share_gets_movers_and_the_rest_stays_bit_for_bit(frames: Tensor) -> None:
    config = FilterConfig(cell_px=4)
    untouched = paste_movers(frames, config, 0.0)
    assert torch.equal(untouched.frames, frames) and not untouched.known.any()
    many = frames.repeat(20, 1, 1, 1, 1)
    moved = paste_movers(many, config, 0.7)
    touched = (moved.frames != many).flatten(1).any(1)
    assert 0.6 < touched.float().mean() < 0.8
    assert not moved.known[~touched].any()
    alone = paste_movers(frames[:1], config, 1.0)  # a batch of one has its own frames only
    assert alone.known.any() and alone.frames.isfinite().all()


def test_taps_share_a_displacement_and_leave_out_what_is_beyond_reach() -> None:
    def taps(x: float, y: float) -> Tensor:
        return soft_taps(torch.tensor([x, y]).view(1, 1, 2, 1, 1), 5).view(5, 5)

    assert taps(0, 0)[2, 2] == 1
    assert taps(1, -2)[0, 3] == 1  # rows are y
    assert taps(0.25, 0)[2].tolist() == [0, 0, 0.75, 0.25, 0]
    assert taps(4, 0).sum() == 0


def test_the_loss_is_least_where_filters_look_the_right_way(frames: Tensor) -> None:
    config = FilterConfig(cell_px=4, levels=(2, 1))
    moved = paste_movers(frames, config, 1.0)
    right = torch.stack([soft_taps(moved.shift / level, 5) for level in config.levels], 1)
    uniform = torch.full_like(right, 1 / 25)
    for first in (0, 3):  # all frames, or the last ones only
        best, blind = (
            displacement_loss(filters[:, :, first:], moved, config) for filters in (right, uniform)
        )
        assert best < 0.6 * blind
    nowhere = paste_movers(frames, config, 0.0)
    assert displacement_loss(uniform, nowhere, config) == 0


def test_linear_filters_are_told_that_displacements_need_a_distribution() -> None:
    filters = {"filters": {"normalisation": "linear"}}
    with pytest.raises(ValidationError, match=r"set movers.weight to 0"):
        PretrainSettings.model_validate({"model": filters})
    for movers in ({"weight": 0}, {"share": 0}):
        settings = PretrainSettings.model_validate({"model": filters, "movers": movers})
        assert settings.displacement_weight == 0
