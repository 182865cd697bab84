from __future__ import annotations

import numpy as np
import pytest
import torch

from dynamonet.video.decode import Box
from dynamonet.video.transforms import (
    MEAN,
    STD,
    ClipBatch,
    View,
    denormalise,
    stack_colours,
)


def pixels(side: int = 32, frames: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)


def batch(views: list[View]) -> ClipBatch:
    return ClipBatch(
        pixels=torch.stack([view.scaled(pixels(), 32) for view in views]),
        colour=stack_colours(views),
        label=torch.zeros(len(views), dtype=torch.int64),
        row=torch.arange(len(views)),
    )


def test_pixels_are_normalised_and_channels_last() -> None:
    out = batch([View((0, 0, 1))]).render()
    assert out.shape == (1, 3, 3, 32, 32)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    expected = (torch.from_numpy(pixels()).permute(3, 0, 1, 2) / 255 - MEAN) / STD
    torch.testing.assert_close(out[0], expected, atol=1e-5, rtol=0)


def test_a_view_is_whole_pixels_inside_its_square() -> None:
    square = Box(10, 20, 32, 32)
    assert View((4 / 32, 8 / 32, 0.5)).box(square) == Box(14, 28, 16, 16)
    assert View.centred(1.0).box(square) == square
    assert View.centred(28 / 32).box(square) == Box(12, 22, 28, 28)
    rng = np.random.default_rng(0)
    for _ in range(300):
        view = View.drawn(rng, scale=(0.05, 1), flip=False, colour=0)
        side = int(rng.integers(2, 70))
        box = view.box(Box(0, 4, side, side))
        assert 2 <= box.height == box.width <= side
        assert 0 <= box.top <= side - box.height and 4 <= box.left <= 4 + side - box.width


def test_frames_of_the_right_size_stay_and_a_mirror_mirrors() -> None:
    given = pixels()
    plain, mirrored = (View((0, 0, 1), flip=flip).scaled(given, 32) for flip in (False, True))
    assert (plain.numpy() == given).all() and (mirrored.numpy() == given[:, :, ::-1]).all()


def test_scaled_frames_keep_their_colours_and_are_seen_alike() -> None:
    flat = np.full((2, 20, 20, 3), (77, 99, 200), np.uint8)
    out = View((0, 0, 1)).scaled(flat, 33)
    assert out.shape == (2, 33, 33, 3) and (out.numpy() == (77, 99, 200)).all()
    still = np.repeat(pixels(frames=1), 3, 0)
    small = View((0, 0, 1)).scaled(still, 17).numpy()
    assert (small[0] == small[1]).all() and (small[0] == small[2]).all()
    wanted = still[0].reshape(16, 2, 16, 2, 3).mean((1, 3))
    halved = View((0, 0, 1)).scaled(still, 16).numpy()[0]  # a filter wider than two pixels
    assert np.corrcoef(halved.ravel(), wanted.ravel())[0, 1] > 0.9


def test_a_drawn_view_stays_in_its_square() -> None:
    rng = np.random.default_rng(1)
    views = [View.drawn(rng, scale=(0.3, 1), flip=True, colour=0.2) for _ in range(500)]
    tops, lefts, sides = zip(*(view.crop for view in views), strict=True)
    assert min(tops) >= 0 and min(lefts) >= 0 and min(sides) >= 0.3 and max(sides) <= 1
    assert all(top + side <= 1 + 1e-9 for top, side in zip(tops, sides, strict=True))
    assert 150 < sum(view.flip for view in views) < 350
    assert not any(View.drawn(rng, scale=(1, 1), flip=False, colour=0).flip for _ in range(50))
    assert View.centred(0.5).crop == (0.25, 0.25, 0.5)


def test_colour_factors_change_what_they_name() -> None:
    plain, bright = View((0, 0, 1)), View((0, 0, 1), colour=(1.2, 1, 1))
    flat = View((0, 0, 1), colour=(1, 0.5, 1))
    seen = denormalise(batch([plain, bright, flat]).render())
    assert stack_colours([plain]) is None
    assert seen[1].mean() > seen[0].mean() * 1.1
    assert seen[2].std() < seen[0].std() * 0.7


def test_a_batch_shows_shapes_and_refuses_those_that_do_not_fit() -> None:
    clip = batch([View((0, 0, 1))])
    assert repr(clip) == "ClipBatch(pixels=(1, 3, 32, 32, 3), label=(1,))"
    assert len(clip) == 1 and clip.to(torch.device("cpu")).pixels.shape == (1, 3, 32, 32, 3)
    with pytest.raises(ValueError, match=r"shapes do not belong together: .*\(1, 3, 30, 32, 3\)"):
        ClipBatch(clip.pixels[:, :, :30], None, clip.label, clip.row)
