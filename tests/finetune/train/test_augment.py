"""Changes of labelled clips: the same for all frames, and the labels follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dynamonet.video.transforms import denormalise, normalise
from finetune.settings import AugmentSettings
from finetune.train.augment import PHOTOMETRIC, augment

LABELS = torch.arange(6) % 3


def clips(num: int = 6, frames: int = 4, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(num, 3, 1, side, side, generator=generator)
    return normalise(pictures).expand(-1, -1, frames, -1, -1).clone()


def changed(frames: Tensor, *, seed: int = 0, **settings: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return augment(frames, LABELS, 3, AugmentSettings(**settings))


def test_nothing_asked_for_changes_nothing() -> None:
    frames, shares = changed(clips())
    assert torch.equal(frames, clips()) and torch.equal(shares.argmax(1), LABELS)
    assert torch.equal(shares.max(1).values, torch.ones(6))


@pytest.mark.parametrize(
    "settings", [{"mixup": 0.5}, {"cutmix": 1.0}, {"erase": 1.0}, {"photometric": 3}]
)
def test_still_clips_stay_still_and_the_same_seed_draws_the_same(
    settings: dict[str, Any],
) -> None:
    frames, shares = changed(clips(), **settings)
    assert frames.shape == clips().shape and not torch.allclose(frames, clips())
    assert torch.allclose(frames, frames[:, :, :1].expand_as(frames), atol=1e-6)
    assert torch.allclose(shares.sum(1), torch.ones(6))
    assert all(
        torch.equal(a, b)
        for a, b in zip(changed(clips(), **settings), (frames, shares), strict=True)
    )
    assert not torch.equal(changed(clips(), seed=1, **settings)[0], frames)


def test_labels_are_mixed_as_the_pixels_are() -> None:
    plain = clips()
    frames, shares = changed(plain, mixup=1.0)
    before = plain.roll(1, 0)
    own = float(((frames - before) / (plain - before)).median())  # the share of the clip itself
    for place in range(6):
        expected = torch.zeros(3)
        expected[LABELS[place]] += own
        expected[LABELS[place - 1]] += 1 - own
        assert torch.allclose(shares[place], expected, atol=1e-3)


def test_the_box_of_another_clip_weighs_by_its_area() -> None:
    plain = clips()
    frames, shares = changed(plain, cutmix=1.0)
    same = (frames == plain).all(1).float().mean((1, 2, 3))
    assert 0 < float(same[0]) < 1
    assert torch.allclose(shares.gather(1, LABELS[:, None])[:, 0], same, atol=1e-6)


def test_a_box_is_greyed_out_in_as_many_clips_as_asked_for() -> None:
    frames, _ = changed(clips(num=6), erase=0.5)
    grey = (frames == 0).all(1).flatten(1).any(1)
    assert 0 < int(grey.sum()) < 6
    assert torch.equal(frames[~grey], clips()[~grey])


@pytest.mark.parametrize("name", sorted(PHOTOMETRIC))
def test_photometric_changes_keep_the_range_and_vanish_with_their_strength(name: str) -> None:
    picture = denormalise(clips(num=1)[0]).transpose(0, 1)
    change = PHOTOMETRIC[name]
    assert torch.allclose(change(picture, 0.0), picture, atol=0.004)
    for strength in (-1.0, 1.0):
        found = change(picture, strength)
        assert found.shape == picture.shape and not torch.allclose(found, picture, atol=0.01)
        assert float(found.min()) >= 0 and float(found.max()) <= 1
