from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dynamonet.errors import UserError
from dynamonet.model.config import ModelConfig, TrunkConfig
from dynamonet.model.network import DynamoNet
from dynamonet.model.prediction import compare, prediction_loss
from dynamonet.training import precision
from dynamonet.training.checkpoint import LoopState, load_checkpoint, save_checkpoint
from dynamonet.training.meters import Window
from dynamonet.training.ranks import Rank
from dynamonet.training.schedule import make_optimizer, rate_factor, set_rate
from dynamonet.training.settings import OptimizerSettings, TrainSettings

CPU = Rank(0, 1, torch.device("cpu"))
TINY = ModelConfig(
    num_frames=8,
    frame_px=32,
    trunk=TrunkConfig(depth=10, width=4, stem_pool=False, temporal_strides=(1, 2, 2, 1)),
)


def test_the_rate_climbs_to_its_peak_and_falls_to_zero() -> None:
    rates = [rate_factor(step, 100, 0.1) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001
    assert rate_factor(0, 1, 0.0) == 1.0


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_vectors_do_not_decay_and_each_part_keeps_its_rate(kind: str) -> None:
    model = DynamoNet(TINY)
    settings = OptimizerSettings(kind=kind, lr=0.1, weight_decay=0.3)  # type: ignore[arg-type]
    optimizer = make_optimizer([(model.trunk, 0.5), (model.motion, 1.0)], settings)
    set_rate(optimizer, 0.2)
    for group in optimizer.param_groups:
        decays = all(p.ndim > 1 for p in group["params"])
        assert group["weight_decay"] == (0.3 if decays else 0.0)
        assert decays or all(p.ndim <= 1 for p in group["params"])
    assert {round(g["lr"], 6) for g in optimizer.param_groups} == {0.01, 0.02}
    held = sum(p.numel() for g in optimizer.param_groups for p in g["params"])
    assert held == sum(p.numel() for p in model.parameters())


def test_frozen_parameters_are_left_out() -> None:
    model = DynamoNet(TINY)
    model.motion.requires_grad_(False)
    optimizer = make_optimizer([(model.trunk, 1.0), (model.motion, 1.0)], OptimizerSettings())
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert not held & {id(p) for p in model.motion.parameters()}


def test_steps_follow_from_epochs_and_stop_at_max_steps() -> None:
    assert TrainSettings(epochs=2.5).total_steps(10) == 25
    assert TrainSettings(epochs=2.5, max_steps=7).total_steps(10) == 7
    assert TrainSettings(epochs=0.01).total_steps(10) == 1


def test_long_trainings_on_gpus_are_compiled_and_the_setting_wins() -> None:
    chosen = TrainSettings().compiles
    assert chosen("cuda", 1000) and not chosen("cuda", 999) and not chosen("cpu", 10**6)
    assert TrainSettings(compile="on").compiles("cpu", 1)
    assert not TrainSettings(compile="off").compiles("cuda", 10**6)


def test_a_window_gives_each_steps_sums_and_begins_anew() -> None:
    window = Window(CPU)
    assert window.next(iter("ab")) == "a"
    window.add(1, 0.1, 4, {"loss": torch.tensor(2.0)})
    window.add(2, 0.2, 4, {"loss": torch.tensor(3.0), "ceiling": torch.tensor(5.0)})
    steps, speed = window.close()
    first, second = {"loss": 2.0, "ceiling": 0.0}, {"loss": 3.0, "ceiling": 5.0}
    assert steps == {1: (0.1, first), 2: (0.2, second)}
    assert speed["clips_per_second"] > 0 and 0 <= speed["data_wait_share"] <= 1
    assert not window.rows and window.clips == 0


def checkpoint(folder: Path) -> tuple[DynamoNet, torch.optim.Optimizer]:
    model = DynamoNet(TINY)
    optimizer = make_optimizer([(model, 1.0)], OptimizerSettings())
    model(torch.randn(2, 3, 8, 32, 32)).predicted[0].square().mean().backward()
    optimizer.step()
    state = LoopState(step=7, samples=28, dataset_digest="d", epoch_sums={"loss": 1.5})
    save_checkpoint(folder, model, optimizer, state, {"stage": "pretrain"})
    return model, optimizer


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    model, optimizer = checkpoint(tmp_path)
    twin = DynamoNet(TINY)
    other = make_optimizer([(twin, 1.0)], OptimizerSettings())
    state = load_checkpoint(tmp_path, twin, other)
    assert (state.step, state.samples, state.epoch_sums) == (7, 28, {"loss": 1.5})
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(
        optimizer.state_dict()["state"].values(), other.state_dict()["state"].values(), strict=True
    ):
        assert torch.equal(a["exp_avg"], b["exp_avg"])


def test_a_checkpoint_of_another_architecture_names_the_difference(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    wider = DynamoNet(TINY.model_copy(update={"trunk": TrunkConfig(depth=10, width=8)}))
    with pytest.raises(UserError, match=r"another architecture: .*trunk\.width: 4 -> 8"):
        load_checkpoint(tmp_path, wider, make_optimizer([(wider, 1.0)], OptimizerSettings()))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    model, optimizer = checkpoint(tmp_path)
    (tmp_path / "optimizer.pt").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path, model, optimizer)


def test_nothing_in_a_checkpoint_is_unpickled_freely(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))

    model, optimizer = checkpoint(tmp_path)
    torch.save({"state": Evil()}, tmp_path / "optimizer.pt")
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path, model, optimizer)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dynamonet" / "conv3d_forms.json"


class TwoFrames(nn.Module):
    """Two convolutions; the second sees as many frames as its kernel reaches, less one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(3, 32, 3, (2, 2, 2), 1, bias=False)
        self.last = nn.Conv3d(32, 32, 3, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x))


@pytest.mark.parametrize("right", ["padded", "fp32"])
def test_layers_whose_gradients_are_wrong_take_the_first_form_that_is_right(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, right: str
) -> None:
    model, clip = TwoFrames(), torch.randn(1, 3, 4, 16, 16)
    agree = precision.gradients_agree
    seen: list[tuple[str, tuple[int, ...]]] = []

    def spy(layer: nn.Conv3d, form: str, shape: tuple[int, ...], *rest: Any) -> bool:
        seen.append((form, shape))
        # whether this machine has the fault or not, the last layer is taken to have it
        return form == right if shape[1] == 32 else agree(layer, form, shape, *rest)

    monkeypatch.setattr(precision, "gradients_agree", spy)
    chosen = precision.choose_precision(model, clip, "bf16", CPU)
    assert chosen.forms == {"last": right} and "put right in last" in str(chosen)
    assert {shape for _, shape in seen} == {(1, 3, 4, 16, 16), (1, 32, 2, 8, 8)}
    with chosen.autocast():
        first = model.first(clip)
        assert first.dtype == torch.bfloat16
        expected = torch.float32 if right == "fp32" else torch.bfloat16
        assert model.last(first).dtype == expected
    assert own_cache.is_file() and len(json.loads(own_cache.read_text())) == 2
    count = len(seen)
    precision.choose_precision(TwoFrames(), clip, "bf16", CPU)
    assert len(seen) == count  # remembered
    own_cache.write_text("damaged")
    precision.choose_precision(TwoFrames(), clip, "bf16", CPU)
    assert len(seen) == 2 * count  # checked again
    with pytest.raises(UserError, match="wrong weight gradients on this machine in last"):
        precision.choose_precision(TwoFrames(), clip, "bf16", CPU, "refuse")


def test_time_padded_beforehand_is_the_same_convolution() -> None:
    plain = nn.Conv3d(4, 6, 3, (2, 1, 1), (1, 1, 1))
    padded = copy.deepcopy(plain)
    padded.__class__ = precision.TimePaddedConv3d
    clip = torch.randn(2, 4, 2, 5, 5)
    torch.testing.assert_close(padded(clip), plain(clip))


def test_bf16_training_with_two_frames_at_the_end_has_right_gradients(own_cache: Path) -> None:
    """On CPUs with bf16 convolutions this fails without the check."""
    torch.manual_seed(0)
    model, clip = TwoFrames(), torch.randn(2, 3, 4, 16, 16)
    model(clip).square().sum().backward()
    exact = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    chosen = precision.choose_precision(model, clip, "bf16", CPU)
    with chosen.autocast():
        out = model(clip)
    out.float().square().sum().backward()
    for reference, parameter in zip(exact, model.parameters(), strict=True):
        assert parameter.grad is not None
        assert (parameter.grad - reference).norm() / reference.norm() < 0.05


def test_a_trunk_that_ends_with_two_frames_trains_in_bf16_as_in_fp32(own_cache: Path) -> None:
    """On CPUs with bf16 convolutions the losses part, or end in nan, without the check."""
    start = torch.rand(4, 3, 1, 40, 40)
    clip = torch.cat([torch.roll(start, t, 4) for t in range(9)], 2)[..., :32, :32]

    def losses(wanted: str) -> list[float]:
        torch.manual_seed(0)
        model = DynamoNet(TINY)
        assert model.trunk(clip[:1, :, :8]).shape[2] == 2
        chosen = precision.choose_precision(model, clip[:, :, :8], wanted, CPU)
        optimizer = make_optimizer([(model, 1.0)], OptimizerSettings(lr=0.003))
        found = []
        for _ in range(30):
            with chosen.autocast():
                output = model(clip[:, :, :8])
            pairs = compare(clip, output.predicted, TINY.filters.levels, TINY.targets)
            loss = prediction_loss(pairs, "mse")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        return found

    exact, half = losses("fp32"), losses("bf16")
    assert half[-1] < 0.8 * half[0]
    assert all(abs(a - b) < 0.05 * a for a, b in zip(exact, half, strict=True))


def test_fp32_asks_for_no_check_and_no_scaling(own_cache: Path) -> None:
    chosen = precision.choose_precision(TwoFrames(), torch.randn(1, 3, 4, 16, 16), "fp32", CPU)
    assert str(chosen) == "fp32" and not own_cache.exists()
    assert not chosen.scaler().is_enabled()
    with chosen.autocast():
        assert TwoFrames()(torch.randn(1, 3, 4, 16, 16)).dtype == torch.float32
