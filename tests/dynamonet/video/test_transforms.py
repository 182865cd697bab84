from __future__ import annotations

import numpy as np
import pytest
import torch

from dynamonet.video.transforms import (
    MEAN,
    STD,
    ClipBatch,
    View,
    denormalise,
    stack_views,
    yuv_to_rgb,
)


def batch(views: list[View], side: int = 32, frames: int = 3) -> ClipBatch:
    generator = torch.Generator().manual_seed(0)
    shape = (len(views), frames, side, side)
    return ClipBatch(
        luma=torch.randint(16, 236, shape, generator=generator, dtype=torch.uint8),
        chroma=torch.full((len(views), frames, 2, side // 2, side // 2), 128, dtype=torch.uint8),
        views=stack_views(views),
        label=torch.zeros(len(views), dtype=torch.int64),
        row=torch.arange(len(views)),
    )


def grey(clip: ClipBatch) -> torch.Tensor:
    return ((clip.luma.float() - 16) / 219 - MEAN) / STD


def test_the_whole_canvas_at_its_own_size_is_untouched() -> None:
    clip = batch([View((0, 0, 1))])
    out = clip.render(32)
    assert out.shape == (1, 3, 3, 32, 32)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(out[:, 0], grey(clip), atol=1e-4, rtol=0)


def test_a_crop_of_whole_pixels_is_exact_and_a_mirror_mirrors() -> None:
    clip = batch([View((4 / 32, 8 / 32, 0.5)), View((4 / 32, 8 / 32, 0.5), flip=True)])
    out = clip.render(16)
    expected = grey(clip)[..., 4:20, 8:24]
    torch.testing.assert_close(out[0, 0], expected[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(out[1, 0], expected[1].flip(-1), atol=1e-4, rtol=0)


def test_all_frames_of_a_clip_are_seen_alike() -> None:
    rng = np.random.default_rng(0)
    views = [View.drawn(rng, scale=(0.5, 1), flip=True, colour=0.4) for _ in range(4)]
    clip = batch(views)
    still = ClipBatch(
        clip.luma[:, :1].expand(-1, 3, -1, -1), clip.chroma, clip.views, clip.label, clip.row
    )
    out = still.render(24)
    torch.testing.assert_close(out[:, :, 0], out[:, :, 1])
    torch.testing.assert_close(out[:, :, 0], out[:, :, 2])


def test_a_drawn_view_stays_on_the_canvas() -> None:
    rng = np.random.default_rng(1)
    views = [View.drawn(rng, scale=(0.3, 1), flip=True, colour=0.2) for _ in range(500)]
    tops, lefts, sides = zip(*(view.crop for view in views), strict=True)
    assert min(tops) >= 0 and min(lefts) >= 0 and min(sides) >= 0.3 and max(sides) <= 1
    assert all(top + side <= 1 + 1e-9 for top, side in zip(tops, sides, strict=True))
    assert 150 < sum(view.flip for view in views) < 350
    assert not any(View.drawn(rng, scale=(1, 1), flip=False, colour=0).flip for _ in range(50))
    assert View.centred(0.5).crop == (0.25, 0.25, 0.5)


@pytest.mark.parametrize(
    ("yuv", "rgb"),
    [
        ((16, 128, 128), (0, 0, 0)),
        ((235, 128, 128), (1, 1, 1)),
        ((81, 90, 240), (1, 0, 0)),
        ((145, 54, 34), (0, 1, 0)),
        ((41, 240, 110), (0, 0, 1)),
    ],
)
def test_colours_are_bt601(yuv: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    luma, u, v = (torch.full((1, 1, 1, 1), float(value)) for value in yuv)
    found = yuv_to_rgb((luma - 16) / 219, (u - 128) / 224, (v - 128) / 224).flatten()
    torch.testing.assert_close(found, torch.tensor(rgb).float(), atol=0.01, rtol=0)


def test_colour_factors_change_what_they_name() -> None:
    plain, bright = View((0, 0, 1)), View((0, 0, 1), colour=(1.2, 1, 1))
    flat = View((0, 0, 1), colour=(1, 0.5, 1))
    seen = denormalise(batch([plain, bright, flat]).render(32))
    assert stack_views([plain]).colour is None
    assert seen[1].mean() > seen[0].mean() * 1.1
    assert seen[2].std() < seen[0].std() * 0.7


def test_a_batch_shows_shapes_and_refuses_those_that_do_not_fit() -> None:
    clip = batch([View((0, 0, 1))])
    assert repr(clip) == "ClipBatch(luma=(1, 3, 32, 32), chroma=(1, 3, 2, 16, 16), label=(1,))"
    assert len(clip) == 1 and clip.to(torch.device("cpu")).luma.shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"shapes do not belong together: .*luma=\(1, 3, 32, 32\)"):
        ClipBatch(clip.luma, clip.chroma[:, :2], clip.views, clip.label, clip.row)
