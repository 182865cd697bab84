from __future__ import annotations

import copy
import json
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dynamonet.errors import Stopped, UserError
from dynamonet.model.config import ModelConfig, TrunkConfig
from dynamonet.model.network import DynamoNet
from dynamonet.model.prediction import pair_frames, prediction_loss
from dynamonet.training.checkpoint.state import (
    LoopState,
    MovingAverage,
    TrainState,
    load_checkpoint,
    snapshot,
)
from dynamonet.training.distributed.coordinator import CoordinatorState
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.distributed.signals import GRACE_SECONDS, StopSignals
from dynamonet.training.logs.metrics import MetricWindow
from dynamonet.training.numerics import forms, precision
from dynamonet.training.perf.memory import fitting_micro_batch
from dynamonet.training.schedule import make_optimizer, rate_factor, set_rate
from dynamonet.training.settings import OptimizerSettings, TrainSettings
from dynamonet.video.transforms import ClipBatch
from finetune.settings import FinetuneSettings
from pretrain.settings import LEAST_CLIPS, PASSES, PretrainSettings
from tests.conftest import logged

CPU = Rank(0, 1, torch.device("cpu"))
TINY = ModelConfig(
    num_frames=8,
    frame_px=32,
    trunk=TrunkConfig(depth=10, width=4, stem_pool=False, temporal_strides=(1, 2, 2, 1)),
)


def test_the_rate_climbs_to_its_peak_and_falls_to_zero() -> None:
    rates = [rate_factor(done / 100, 0.1) for done in range(101)]
    assert rates[0] == 0.0 and rates[5] == 0.5 and rates[10] == 1.0
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == 0.0
    assert rate_factor(0.0, 0.0) == 1.0


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


def test_weights_of_any_memory_layout_move_as_written_down(tmp_path: Path) -> None:
    """The fused update reads memory in its order, whatever the layout of weights and moments."""

    def trained(*, fused: bool) -> nn.Module:
        torch.manual_seed(0)
        made = train_state()
        made.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        for group in made.optimizer.param_groups:
            group["fused"] = fused
        for step in range(4):
            made.optimizer.zero_grad()
            made.model(torch.randn(2, 3, 8, 32, 32)).predicted[0].square().mean().backward()
            made.optimizer.step()
            if step == 1:
                for held in made.optimizer.state.values():
                    held |= {name: value.contiguous() for name, value in held.items()}
                snapshot(made, LoopState(step=1), {})(tmp_path)
                load_checkpoint(tmp_path, made)
        return made.model

    pairs = zip(trained(fused=True).parameters(), trained(fused=False).parameters(), strict=True)
    for own, exact in pairs:
        torch.testing.assert_close(own, exact, rtol=1e-4, atol=1e-6)


def test_frozen_parameters_are_left_out() -> None:
    model = DynamoNet(TINY)
    model.motion.requires_grad_(False)
    optimizer = make_optimizer([(model.trunk, 1.0), (model.motion, 1.0)], OptimizerSettings())
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert not held & {id(p) for p in model.motion.parameters()}


def test_steps_follow_from_epochs_and_stop_at_max_steps() -> None:
    assert PretrainSettings(epochs=2.5).total_steps(10) == 25
    assert PretrainSettings(epochs=2.5, max_steps=7).total_steps(10) == 7
    assert PretrainSettings(epochs=0.01).total_steps(10) == 1
    assert FinetuneSettings().total_steps(10) == 600
    assert PretrainSettings().total_steps(10_000) == PASSES * 10_000
    small = PretrainSettings().total_steps(1)  # sees enough clips all the same
    assert small * PretrainSettings().loader.batch_size == LEAST_CLIPS > PASSES


def test_long_trainings_on_gpus_are_compiled_and_the_setting_wins() -> None:
    chosen = TrainSettings().compiles
    assert chosen("cuda", 1000) and not chosen("cuda", 999) and not chosen("cpu", 10**6)
    assert TrainSettings(compile="on").compiles("cpu", 1)
    assert not TrainSettings(compile="off").compiles("cuda", 10**6)


def test_a_window_gives_each_steps_sums_and_begins_anew() -> None:
    window = MetricWindow(CPU)
    window.add(1, 0.1, 4, {"loss": torch.tensor(2.0)})
    window.add(2, 0.2, 4, {"loss": torch.tensor(3.0), "ceiling": torch.tensor(5.0)})
    steps, clips = window.close()
    first, second = {"loss": 2.0, "ceiling": 0.0}, {"loss": 3.0, "ceiling": 5.0}
    assert steps == {1: (0.1, first), 2: (0.2, second)} and clips == 8
    assert not window.rows and window.clips == 0


def train_state(config: ModelConfig = TINY, *, average: bool = False) -> TrainState:
    model = DynamoNet(config)
    optimizer = make_optimizer([(model, 1.0)], OptimizerSettings())
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    return TrainState(model, optimizer, scaler, MovingAverage.of(model, 0.5) if average else None)


def checkpoint(folder: Path, *, average: bool = False) -> TrainState:
    made = train_state(average=average)
    for _ in range(2):
        made.optimizer.zero_grad()
        made.model(torch.randn(2, 3, 8, 32, 32)).predicted[0].square().mean().backward()
        made.optimizer.step()
        if made.average is not None:
            made.average.update(made.model)
    made.scaler.scale(torch.ones(1))
    made.scaler.update(128.0)
    state = LoopState(step=7, samples=28, micro_batch=2, epoch_sums={"loss": 1.5})
    snapshot(made, state, {"stage": "pretrain"})(folder)
    return made


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("average", [False, True])
def test_a_checkpoint_brings_everything_back(tmp_path: Path, average: bool) -> None:
    made, twin = checkpoint(tmp_path, average=average), train_state(average=average)
    state = load_checkpoint(tmp_path, twin)
    assert (state.step, state.samples, state.epoch_sums) == (7, 28, {"loss": 1.5})
    assert state.micro_batch == 2 and twin.scaler.get_scale() == 128.0
    assert same_weights(made.model, twin.model) and same_weights(made.result, twin.result)
    assert same_weights(made.model, made.result) != average
    assert same_weights(DynamoNet.from_pretrained(tmp_path), made.result)
    before, after = (one.optimizer.state_dict()["state"].values() for one in (made, twin))
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a["exp_avg"], b["exp_avg"])


def test_a_snapshot_is_of_its_moment(tmp_path: Path) -> None:
    made = train_state()
    write = snapshot(made, LoopState(step=1), {})
    kernel = made.model.get_parameter("trunk.stem.conv.weight")
    before = kernel.clone()
    with torch.no_grad():
        kernel.add_(1)
    write(tmp_path)
    saved = DynamoNet.from_pretrained(tmp_path).get_parameter("trunk.stem.conv.weight")
    assert torch.equal(saved, before)


def test_a_checkpoint_of_another_architecture_names_the_difference(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    wider = train_state(TINY.model_copy(update={"trunk": TrunkConfig(depth=10, width=8)}))
    with pytest.raises(UserError, match=r"another architecture: .*trunk\.width: 4 -> 8"):
        load_checkpoint(tmp_path, wider)


def test_a_checkpoint_from_before_an_option_was_made_is_of_the_same_architecture(
    tmp_path: Path,
) -> None:
    made = checkpoint(tmp_path)
    described = json.loads((tmp_path / "model.json").read_text())
    del described["model"]["trunk"]["stem_kernel"]
    (tmp_path / "model.json").write_text(json.dumps(described))
    twin = train_state()
    assert load_checkpoint(tmp_path, twin).step == 7
    assert same_weights(made.model, twin.model)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    made = checkpoint(tmp_path)
    (tmp_path / "training.pt").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path, made)


def test_nothing_in_a_checkpoint_is_unpickled_freely(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))

    made = checkpoint(tmp_path)
    torch.save({"optimizer": Evil()}, tmp_path / "training.pt")
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path, made)
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
    assert chosen.forms == {"last": right} and "corrected in last" in str(chosen)
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


def test_the_gradients_of_frozen_layers_can_be_compared_too(own_cache: Path) -> None:
    model = TwoFrames().requires_grad_(False)
    assert precision.choose_precision(model, torch.randn(1, 3, 4, 16, 16), "bf16", CPU).dtype
    assert not any(layer.requires_grad for layer in model.parameters())
    assert len(json.loads(own_cache.read_text())) == 2


@pytest.mark.parametrize(
    ("fastest", "right", "taken"),
    [
        ("plain", "plain folded fp32", ""),
        ("folded", "plain folded fp32", "folded"),
        ("fp32", "plain folded fp32", "in TF32"),
        ("folded", "plain fp32", ""),
        ("folded", "padded fp32", "in TF32"),
    ],
)
def test_the_convolution_of_pixels_takes_the_fastest_form_that_is_right(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, fastest: str, right: str, taken: str
) -> None:
    monkeypatch.setattr(precision, "has_tf32", lambda device: True)
    monkeypatch.setattr(precision, "seconds_of", lambda _, form, *__: 1.0 + (form != fastest))
    monkeypatch.setattr(precision, "gradients_agree", lambda _, form, *__: form in right)
    model, clip = nn.Sequential(nn.Conv3d(3, 8, 3, (1, 2, 2), 1)), torch.randn(1, 3, 4, 16, 16)
    exact = model(clip)
    precision.choose_precision(copy.deepcopy(model), clip, "bf16", CPU)
    chosen = precision.choose_precision(model, clip, "bf16", CPU, "refuse")  # remembered
    assert str(chosen) == (f"bf16, 0 {taken}" if taken else "bf16")
    with chosen.autocast():
        out = model(clip)
    assert out.dtype == (torch.float32 if taken == "in TF32" else torch.bfloat16)
    torch.testing.assert_close(out.float(), exact, rtol=0.02, atol=0.02)
    assert len(json.loads(own_cache.read_text())) == 1


def test_a_form_that_is_hardly_faster_is_not_taken(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a training that goes on might choose otherwise than it did before."""
    monkeypatch.setattr(
        precision, "seconds_of", lambda _, form, *__: 1.0 if form == "plain" else 0.95
    )
    model, clip = nn.Sequential(nn.Conv3d(3, 8, 3, (1, 2, 2), 1)), torch.randn(1, 3, 4, 16, 16)
    assert not precision.choose_precision(model, clip, "bf16", CPU).faster


@pytest.mark.parametrize("fastest", ["fp32", "bf16"])
def test_auto_takes_the_format_in_which_the_network_is_faster(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, fastest: str
) -> None:
    def seconds(_: nn.Module, forms: Any, clip: torch.Tensor, dtype: torch.dtype) -> float:
        timed.append(dtype)
        return 1.0 + ((dtype == torch.float32) == (fastest == "bf16"))

    timed: list[torch.dtype] = []
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: True)
    monkeypatch.setattr(precision, "seconds_of_network", seconds)
    monkeypatch.setattr(precision, "gradients_agree", lambda _, form, *__: form == "padded")
    model, clip = TwoFrames(), torch.randn(1, 3, 4, 16, 16)
    assert precision.choose_precision(TwoFrames(), clip, "auto", CPU).format == fastest
    chosen = precision.choose_precision(model, clip, "auto", CPU)  # remembered
    assert chosen.format == fastest and len(timed) == 2
    padded = type(model.last) is forms.TimePaddedConv3d
    assert padded == (fastest == "bf16") == bool(chosen.forms)
    assert precision.choose_precision(TwoFrames(), clip, "bf16", CPU).format == "bf16"
    assert len(timed) == 2  # what is asked for is not timed


@pytest.mark.parametrize("seed", range(20))
def test_a_folded_convolution_is_the_same_sum(seed: int) -> None:
    rng = random.Random(seed)
    kernel = tuple(rng.choice((1, 3, 5, 7, 9)) for _ in range(3))
    half = tuple(side // 2 for side in kernel)
    plain = nn.Conv3d(3, 5, kernel, (1, 2, 2), half, bias=seed % 2 == 0).double()  # type: ignore[arg-type]
    folded = copy.deepcopy(plain)
    folded.__class__ = forms.FoldedConv3d
    assert forms.foldable(plain)
    shape = (2, 3, rng.randint(1, 9), rng.randint(4, 20), rng.randint(4, 20))
    given = [torch.randn(shape, dtype=torch.double).requires_grad_()]
    given.append(given[0].detach().clone().requires_grad_())
    outs = [layer(clip) for layer, clip in zip((plain, folded), given, strict=True)]
    grad = torch.randn_like(outs[0])
    for out in outs:
        out.backward(grad)
    for one, other in (outs, given_grads(given), given_grads((plain.weight, folded.weight))):
        torch.testing.assert_close(one, other)


def given_grads(leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize(
    "how",
    [
        {"stride": 2, "padding": 1},
        {"stride": (1, 2, 2), "padding": 0},
        {"stride": (1, 2, 2), "padding": 1, "dilation": 2},
        {"stride": (1, 2, 2), "padding": 1, "padding_mode": "replicate"},
    ],
)
def test_what_cannot_be_folded_is_not(how: dict[str, Any]) -> None:
    assert not forms.foldable(nn.Conv3d(3, 8, 3, **how))


def test_time_padded_beforehand_is_the_same_convolution() -> None:
    plain = nn.Conv3d(4, 6, 3, (2, 1, 1), (1, 1, 1))
    padded = copy.deepcopy(plain)
    padded.__class__ = forms.TimePaddedConv3d
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
            pairs = pair_frames(clip, output.predicted, TINY.filters.levels, TINY.targets)
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


def test_clips_at_once_are_halved_until_they_fit_and_it_is_logged() -> None:
    tried: list[int] = []
    said: list[str] = []

    def attempt(clips: int) -> None:
        tried.append(clips)
        if clips > 3:
            raise torch.OutOfMemoryError("injected")

    with logged(said):
        assert fitting_micro_batch(24, 24, attempt, CPU) == 3
    assert tried == [24, 12, 6, 3]
    assert said[0].startswith("memory   24 clips at once do not fit, taking 12: 2 parts a step")
    assert fitting_micro_batch(24, 7, lambda _: None, CPU) == 6  # each part the same

    def never(clips: int) -> None:
        raise torch.OutOfMemoryError("injected")

    with pytest.raises(UserError, match="out of memory with one clip at a time"):
        fitting_micro_batch(4, 4, never, CPU)


def test_a_batch_is_cut_into_parts_that_make_it_up() -> None:
    pixels = torch.arange(5)[:, None, None, None, None].expand(5, 2, 4, 4, 3)
    colour = torch.rand(5, 3)
    batch = ClipBatch(pixels, colour, torch.arange(5), torch.arange(5))
    parts = batch.parts(2)
    assert [len(part) for part in parts] == [2, 2, 1] and batch.parts(5) == [batch]
    assert torch.cat([part.pixels for part in parts]).equal(pixels)
    assert [part.colour.tolist() for part in parts if part.colour is not None] == [
        each.tolist() for each in colour.split(2)
    ]
    assert torch.cat([part.row for part in parts]).equal(batch.row)


def test_the_coordinator_names_the_ranks_that_are_behind() -> None:
    state = CoordinatorState()
    assert not state.beat(0, 42, "a") and not state.beat(1, 40, "b")
    assert state.describe_lagging() == "rank 1 on b at step 40, heard of 0 s ago"
    state.steps[0] = (42, "a", -1e6)
    assert "rank 0 on a at step 42" in state.describe_lagging()
    state.request_stop()
    assert state.beat(0, 43, "a")
    state.record_failure(UserError("first"))
    state.record_failure(UserError("second"))
    assert str(state.get_failure()) == "first"


def test_one_signal_asks_two_insist_and_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopSignals() as signals:
        signals.training = True
        signal.raise_signal(signal.SIGTERM)
        assert signals.asked == signal.SIGTERM
        signals.check()
        with pytest.raises(Stopped) as caught:
            signal.raise_signal(signal.SIGINT)
        assert caught.value.exit_status == 130
        signals.asked_at -= GRACE_SECONDS + 1
        with pytest.raises(Stopped) as caught:
            signals.check()
        assert caught.value.exit_status == 143
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="do not go together"):
        TrainSettings(compile="on", activation_checkpointing=True)
    with pytest.raises(ValueError, match="above num_workers = 2"):
        TrainSettings(num_workers=2, min_workers=3)
    assert not TrainSettings(activation_checkpointing=True).compiles("cuda", 10**6)


def test_fp16_keeps_a_healthy_layer_however_many_clips_there_are(own_cache: Path) -> None:
    """Squares summed over a million places overflow in fp16; the scale of training does not."""
    layer = nn.Conv3d(3, 4, 1, bias=False)
    assert precision.gradients_agree(layer, "plain", (4, 3, 16, 128, 128), CPU.device, torch.half)
