"""Drawn figures: their displacements are true, no two clips are alike, actions are theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dynamonet.model.filtering import apply_filters
from dynamonet.model.network import DynamoNet
from dynamonet.training.checkpoint.state import (
    LoopState,
    TrainState,
    load_checkpoint,
    snapshot,
)
from dynamonet.training.schedule import make_optimizer
from dynamonet.video.transforms import ClipBatch
from pretrain.drawn import scene
from pretrain.drawn.actions import ANIMAL, CHANNELS, HUMAN, PHASES, TAUGHT, TREE, Actions
from pretrain.drawn.bodies import Bodies, channels_at
from pretrain.drawn.recording import record
from pretrain.drawn.scene import DrawnClips, draw_clips
from pretrain.movers import soft_taps
from pretrain.objective import Pretraining
from pretrain.settings import DrawnSettings, PretrainSettings

SIDE, FRAMES = 48, 9
TINY = {
    "model": {
        "num_frames": 4,
        "frame_px": 32,
        "trunk": {"depth": 10, "width": 4, "stem_pool": False},
        "filters": {"cell_px": 4},
    }
}


def drawn(count: int, *, seed: int = 0, cell_px: int = 1, side: int = SIDE) -> DrawnClips:
    torch.manual_seed(seed)
    table = Actions.taught()
    action = torch.randint(TAUGHT, (count,))
    return draw_clips(
        table, action, num_frames=FRAMES, side=side, cell_px=cell_px, device=torch.device("cpu")
    )


def moved_right(clips: DrawnClips) -> tuple[Tensor, Tensor, Tensor]:
    """Returns errors of the frames that displacements predict, of a copy, and where they count."""
    frames = clips.moved.frames
    now, after = frames[:, :, :-1], frames[:, :, 1:]
    predicted = apply_filters(now, soft_taps(clips.moved.shift, 11), 1.0)
    within = clips.moved.known & (clips.moved.shift.abs().amax(2) < 5)
    wrong, copied = ((guess - after).square().sum(1) for guess in (predicted, now))
    return wrong, copied, within


def test_filters_made_of_the_displacements_move_figures_and_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scene, "record", lambda frames: frames)  # flicker and noise are not motion
    clips = drawn(48)
    assert clips.moved.shift.shape == (48, FRAMES - 1, 2, SIDE, SIDE)
    predicted, copied, within = moved_right(clips)
    moves = within & (clips.moved.shift.norm(dim=2) > 0.5)
    assert 0.02 < moves.float().mean() < 0.3
    assert predicted[moves].mean() < 0.3 * copied[moves].mean()


def test_most_figures_can_be_seen_and_most_of_what_is_seen_of_them_was_seen_before() -> None:
    clips = drawn(64, cell_px=4)
    share = clips.moved.known.float().mean((1, 2, 3))
    assert 0.1 < share.mean() < 0.5
    assert (
        clips.moved.shift[clips.moved.known[:, :, None].expand_as(clips.moved.shift)]
        .isfinite()
        .all()
    )


def test_no_clip_comes_again_and_a_seed_brings_the_same_ones() -> None:
    first, again, other = drawn(4), drawn(4), drawn(4, seed=1)
    assert torch.equal(first.moved.frames, again.moved.frames)
    assert torch.equal(first.action, again.action)
    assert not torch.equal(first.moved.frames, other.moved.frames)
    assert len({clip.numpy().tobytes() for clip in first.moved.frames}) == 4


@pytest.mark.parametrize("side", [16, 50, 112])
def test_clips_of_any_size_are_drawn(side: int) -> None:
    clips = drawn(3, side=side, cell_px=8)
    assert clips.moved.frames.shape == (3, 3, FRAMES, side, side)
    assert clips.moved.frames.isfinite().all()
    assert clips.moved.known.shape[-1] == -(-side // 8)


def test_an_action_is_what_its_number_says() -> None:
    table, alone = Actions.taught(), Actions.numbered([17])
    assert torch.equal(table.channels[17], alone.channels[0])
    assert table.channels.shape == (TAUGHT, CHANNELS, PHASES)
    assert table.channels.isfinite().all() and (table.period > 0).all()
    flat = table.channels.flatten(1)
    assert torch.cdist(flat[:200], flat[:200]).fill_diagonal_(9).min() > 0.1  # no two are alike
    assert {HUMAN, ANIMAL, TREE} == set(table.kind.tolist())
    assert 0.05 < table.pair.float().mean() < 0.3


def test_parts_keep_their_length_and_hang_together() -> None:
    torch.manual_seed(0)
    table = Actions.taught()
    bodies = Bodies.drawn(table.kind[:50])
    phase = torch.linspace(0, 1, 7).expand(50, -1)
    begin, end = bodies.posed(channels_at(table.channels[:50], phase, torch.ones(50, CHANNELS)))
    length = (end - begin).norm(dim=-1)
    torch.testing.assert_close(length, bodies.length[:, None].expand_as(length))
    torch.testing.assert_close(begin[:, :, 6:], end[:, :, 2:6])  # a lower arm at an upper one


def test_a_cycle_ends_where_it_began() -> None:
    channels = Actions.numbered(range(8)).channels
    phase = torch.tensor([[0.0, 1.0, 3.0]]).expand(8, -1)
    read = channels_at(channels, phase, torch.ones(8, CHANNELS))
    torch.testing.assert_close(read[:, 0], read[:, 1])
    torch.testing.assert_close(read[:, 0], read[:, 2])
    still = channels_at(channels, torch.rand(8, 5), torch.zeros(8, CHANNELS))
    torch.testing.assert_close(still[:, 0], still[:, 4])


def test_a_recording_stays_within_what_a_picture_can_show() -> None:
    torch.manual_seed(0)
    frames = 3 * torch.randn(20, 4, 20, 20, 3)  # no multiple of a block
    seen = record(frames.clone())
    assert seen.min() >= -2.01 and seen.max() <= 2.45
    assert not np.array_equal(seen.numpy(), frames.numpy())


def test_the_head_of_actions_goes_on_with_a_training_and_is_not_in_the_model(
    tmp_path: Path,
) -> None:
    task = Pretraining(PretrainSettings.model_validate({**TINY, "drawn": {"share": 0.5}}), ())

    def state() -> TrainState:
        model = task.build_model()
        optimizer = make_optimizer(task.rate_groups(model), task.settings.optimizer)
        return TrainState(model, optimizer, torch.amp.GradScaler(enabled=False))

    trained, fresh = state(), state()
    snapshot(trained, LoopState(step=3), {})(tmp_path)
    kept = DynamoNet.from_pretrained(tmp_path)
    assert kept.classifier is None and kept.config.num_classes is None
    assert load_checkpoint(tmp_path, fresh).step == 3
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, fresh.model.state_dict()[name]), name


def test_a_step_learns_of_drawn_clips_beside_those_that_were_read() -> None:
    task = Pretraining(PretrainSettings.model_validate({**TINY, "drawn": {"share": 0.6}}), ())
    model = task.build_model().train()
    pixels = torch.randint(0, 256, (4, 5, 32, 32, 3), dtype=torch.uint8)
    batch = ClipBatch(pixels, None, torch.full((4,), -1), torch.arange(4))
    torch.manual_seed(0)
    loss, sums = task.loss(model, batch.render(), batch)
    loss.backward()
    assert sums["action_loss"] > 0 and sums["displacement_loss"] > 0
    assert all(p.grad is not None for p in model.parameters())
    assert [DrawnSettings(share=s).clips(8) for s in (0, 0.01, 0.5, 0.75)] == [0, 1, 8, 24]
