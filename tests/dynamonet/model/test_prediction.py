from __future__ import annotations

import pytest
import torch

from dynamonet.model.config import FilterConfig
from dynamonet.model.filtering import apply_filters
from dynamonet.model.prediction import (
    FramePairs,
    SquaredErrors,
    error_metrics,
    error_sums,
    pair_frames,
    pool_frames,
    predict_levels,
    prediction_loss,
    squared_errors,
)


def delta(num: int, levels: int = 1) -> torch.Tensor:
    filters = torch.zeros(1, levels, num, 9, 1, 1)
    filters[:, :, :, 4] = 1
    return filters


def test_within_the_clip_each_frame_is_compared_with_the_one_after_it() -> None:
    frames = torch.randn(1, 3, 5, 8, 8)
    (pair,) = pair_frames(
        frames, predict_levels(frames[:, :, :4], delta(4), (1,), "within_clip"), (1,), "within_clip"
    )
    torch.testing.assert_close(pair.predicted, frames[:, :, :4])
    torch.testing.assert_close(pair.copied, frames[:, :, :4])
    torch.testing.assert_close(pair.true, frames[:, :, 1:])


def test_future_frames_are_rolled_out_from_the_last_one() -> None:
    frames = torch.randn(1, 3, 7, 8, 8)
    filters = torch.randn(1, 1, 3, 9, 1, 1)
    (guess,) = predict_levels(frames[:, :, :4], filters, (1,), "future")
    one = apply_filters(frames[:, :, 3:4], filters[:, 0, :1])
    two = apply_filters(one, filters[:, 0, 1:2])
    torch.testing.assert_close(guess[:, :, 1:2], two)
    (pair,) = pair_frames(frames, [guess], (1,), "future")
    torch.testing.assert_close(pair.true, frames[:, :, 4:])
    torch.testing.assert_close(pair.copied, frames[:, :, 3:4].expand(1, 3, 3, 8, 8))


def test_each_level_is_predicted_at_its_own_resolution() -> None:
    frames = torch.randn(2, 3, 5, 8, 8)
    filters = delta(4, levels=2).expand(2, -1, -1, -1, -1, -1)
    guesses = predict_levels(frames[:, :, :4], filters, (1, 4), "within_clip")
    assert [tuple(g.shape[3:]) for g in guesses] == [(8, 8), (2, 2)]
    pairs = pair_frames(frames, guesses, (1, 4), "within_clip")
    expected = sum((p.predicted - p.true).square().mean() for p in pairs) / 2
    torch.testing.assert_close(prediction_loss(pairs, "mse"), expected)


def test_copying_has_skill_zero_and_truth_has_skill_one() -> None:
    frames = torch.randn(1, 3, 5, 8, 8)
    (copy,) = pair_frames(frames, [frames[:, :, :4]], (1,), "within_clip")
    (truth,) = pair_frames(frames, [frames[:, :, 1:]], (1,), "within_clip")
    assert squared_errors(copy, 3).total.skill == 0
    assert squared_errors(truth, 3).total.skill == 1


def test_skill_counts_only_pixels_whose_window_lies_in_the_frame() -> None:
    frames = torch.randn(1, 3, 2, 8, 8)
    guess = frames[:, :, 1:].clone()
    guess[..., 0, :] += 100  # the border predicts nonsense
    (pair,) = pair_frames(frames, [guess], (1,), "within_clip")
    assert squared_errors(pair, 3).total.skill == 1
    by_hand = (frames[:, :, 0] - frames[:, :, 1])[..., 1:-1, 1:-1].square().sum()
    torch.testing.assert_close(squared_errors(pair, 3).total.copied, by_hand)


def test_the_ceiling_is_reached_by_a_global_shift_and_by_no_filter_beyond_it() -> None:
    still = torch.randn(1, 3, 1, 16, 16)
    frames = torch.cat([still, torch.roll(still, 1, 4)], 2)
    (pair,) = pair_frames(frames, [still], (1,), "within_clip")
    upper_bound = squared_errors(pair, 3, upper_bound=True).total.upper_bound
    assert upper_bound is not None and upper_bound > 0.999
    noise = torch.randn(1, 3, 2, 16, 16)
    (pair,) = pair_frames(noise, [noise[:, :, :1]], (1,), "within_clip")
    errors = squared_errors(pair, 3, upper_bound=True).total
    assert errors.best is not None
    for _ in range(20):
        filters = torch.randn(1, 1, 9, 1, 1)
        (other,) = pair_frames(
            noise, [apply_filters(noise[:, :, :1], filters)], (1,), "within_clip"
        )
        assert squared_errors(other, 3).total.predicted >= errors.best


@pytest.mark.parametrize("still", [torch.zeros(1, 3, 1, 8, 8), torch.rand(1, 3, 1, 8, 1)])
def test_the_ceiling_of_flat_frames_is_that_of_the_few_filters_that_differ(
    still: torch.Tensor,
) -> None:
    still = still.expand(1, 3, 1, 8, 8).contiguous()
    pair = FramePairs(still, torch.randn(1, 3, 1, 8, 8), still)
    best = squared_errors(pair, 5, upper_bound=True).total.best
    patches = still.double().unfold(3, 5, 1).unfold(4, 5, 1).flatten(0, 4).flatten(1)
    wanted = pair.true[..., 2:-2, 2:-2].double().reshape(-1, 1)
    solved = torch.linalg.lstsq(patches, wanted, driver="gelsd").solution
    assert best is not None
    torch.testing.assert_close(float(best), float((patches @ solved - wanted).square().sum()))


def test_sums_of_errors_add_up_before_they_are_divided() -> None:
    parts = [SquaredErrors(torch.tensor(1.0), torch.tensor(4.0)) for _ in range(2)]
    total = SquaredErrors(sum(p.predicted for p in parts), sum(p.copied for p in parts))  # type: ignore[arg-type]
    assert total.skill == 0.75


@pytest.mark.parametrize("name", ["mse", "l1", "smooth_l1"])
def test_losses_are_torchs_own(name: str) -> None:
    frames = torch.randn(1, 3, 3, 8, 8)
    (pair,) = pair_frames(frames, [torch.zeros(1, 3, 2, 8, 8)], (1,), "within_clip")
    own = {"mse": "mse_loss", "l1": "l1_loss", "smooth_l1": "smooth_l1_loss"}[name]
    expected = getattr(torch.nn.functional, own)(pair.predicted, pair.true)
    torch.testing.assert_close(prediction_loss([pair], name), expected)  # type: ignore[arg-type]


def test_skill_of_training_comes_from_sums_over_steps_at_each_level() -> None:
    config, frames = FilterConfig(size=3, levels=(1, 2)), torch.randn(3, 3, 3, 12, 12)
    guesses = [frames[:, :, :2] * 0.5, pool_frames(frames, 2)[:, :, :2] * 0.9]
    pairs = pair_frames(frames, guesses, config.levels, "within_clip")
    step = error_sums(pairs, config)
    found = error_metrics({name: 2 * float(value) for name, value in step.items()}, config.levels)
    assert set(found) == {"skill", "skill_level2"}
    for pair, skill in zip(pairs, found.values(), strict=True):
        assert skill == pytest.approx(float(squared_errors(pair, 3).total.skill), rel=1e-4)
