"""The GPU's path without a GPU: fake tensors know shapes and devices, and hold no values.

Asking one for its value fails, as does mixing devices: so a step that runs here waits for no device
and moves everything that it needs. Autograd's engine wants a driver for `cuda`; so forward, loss,
update and evaluation run on a fake `cuda`, and the whole step with its way back on a fake CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)

from dynamonet.command_line import load
from dynamonet.model.network import DynamoNet
from dynamonet.training import setup
from dynamonet.training.checkpoint.state import MovingAverage, TrainState
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.numerics.precision import Precision
from dynamonet.training.perf.monitor import PerfMonitor
from dynamonet.training.schedule import make_optimizer
from dynamonet.training.task import Task
from dynamonet.training.train_step import Gradients, TrainStep
from dynamonet.video.transforms import ClipBatch
from finetune.settings import FinetuneSettings
from finetune.train.objective import Finetuning
from pretrain import movers
from pretrain.objective import Pretraining
from pretrain.settings import PretrainSettings
from tests.conftest import TINY_MODEL

PRETRAININGS = [
    "--model.filters.kind grid",
    "--model.filters.kind shared",
    "--model.filters.kind grid --model.targets future",
    "--model.filters.kind shared --model.targets future",
    "--model.filters.levels 1,2 --model.input rgb --loss l1 --movers.weight 0",
    "--optimizer.kind sgd --activation_checkpointing true",
    "--config paper",
    "--config tiny",
    "",
]
FINETUNINGS = [
    "--recipe full --aux_weight 0.5",
    "--recipe attentive --class_weights balanced",
    "--recipe full --reads features",
    "--recipe full --reads dmr",
    "--recipe ridge",
]


@pytest.fixture(params=["cuda", "cpu"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A fake device; what is drawn on the host is drawn in earnest."""
    draw = movers.draw_movers

    def drawn(*words: Any) -> Any:
        with unset_fake_temporarily():
            return draw(*words)

    monkeypatch.setattr(movers, "draw_movers", drawn)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    return torch.device(request.param)


class Unwatched:
    def lap(self, part: str) -> None:
        return None


def moved(model: DynamoNet, device: torch.device) -> DynamoNet:
    """Puts a model on a fake device; `Module.to` cannot swap fake parameters."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                there = value.detach().to(device, copy=True)
                module._parameters[name] = nn.Parameter(there, value.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return model


def fake_step(task: Task[Any], device: torch.device) -> tuple[TrainStep, ClipBatch]:
    """Returns a step with all that a training has, and a batch of four clips in two parts."""
    settings = task.settings
    with unset_fake_temporarily():
        model, averaged = task.build_model(), task.build_model()
        size = (4, task.training_data().num_frames, *[model.config.frame_px] * 2, 3)
    average = MovingAverage(moved(averaged, device), 0.9)
    moved(model, device)
    optimizer = make_optimizer(task.rate_groups(model), settings.optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    state = TrainState(model, optimizer, scaler, average)
    precision, perf = Precision(torch.bfloat16, device.type), cast("PerfMonitor", Unwatched())
    step = TrainStep(task, state, precision, Rank(0, 1, device), 2, perf)
    labels = torch.zeros(4, dtype=torch.int64)
    batch = ClipBatch(torch.zeros(size, dtype=torch.uint8), torch.rand(4, 3), labels, labels)
    return step, batch


def gradients(step: TrainStep, batch: ClipBatch) -> Gradients:
    """Computes a step's gradients; on a fake `cuda` all but the way back."""
    if step.rank.device.type == "cpu":
        return step.gradients(0, batch)
    model = step.train_state.model.train()
    loss, sums = step._loss(model, batch.parts(2)[0])
    assert {value.device.type for value in (loss, *sums.values())} == {"cuda"}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    norm = nn.utils.get_total_norm([p.grad for p in step._trained() if p.grad is not None])
    return Gradients(loss.detach(), norm, sums)


def run(task: Task[Any], device: torch.device) -> None:
    """Takes a step: gradients, the check, clipping, optimiser, average, and an evaluation."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        step, batch = fake_step(task, device)
        found = gradients(step, batch)
        assert found.broken.device.type == device.type
        step.apply(found)
        step.discard()
        frames = batch.to(device).render()
        with torch.no_grad(), step.precision.autocast():
            task.rehearse(step.train_state.result.eval(), frames)


@pytest.fixture
def tasks(shard_set: Path) -> Callable[[str, list[str]], Task[Any]]:
    def made(stage: str, words: list[str]) -> Task[Any]:
        if stage == "pretrain":
            return Pretraining(load(PretrainSettings, words, prog=""), (str(shard_set),))
        return Finetuning(load(FinetuneSettings, words, prog=""), str(shard_set), None)

    return made


@pytest.mark.parametrize("words", PRETRAININGS)
def test_a_pretraining_step_waits_for_no_device(
    tasks: Any, device: torch.device, words: str
) -> None:
    small = [] if "--config" in words or not words else TINY_MODEL
    run(tasks("pretrain", [*small, *words.split()]), device)


@pytest.mark.parametrize("words", FINETUNINGS)
def test_a_finetuning_step_waits_for_no_device(
    tasks: Any, device: torch.device, words: str
) -> None:
    run(tasks("finetune", [*TINY_MODEL, *words.split()]), device)


def test_what_waits_or_mixes_devices_is_found(
    tasks: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tasks("pretrain", [*TINY_MODEL])
    loss = Pretraining.loss

    def waits(self: Pretraining, model: nn.Module, *words: Any) -> Any:
        found, sums = loss(self, model, *words)
        return found * float(found.detach()), sums

    def mixes(self: Pretraining, model: nn.Module, frames: Tensor, batch: ClipBatch) -> Any:
        found, sums = loss(self, model, frames, batch)
        return found + torch.ones(2).sum() * torch.ones(2, device="meta").sum(), sums

    monkeypatch.setattr(Pretraining, "loss", waits)
    with pytest.raises(DataDependentOutputException):
        run(task, device)
    monkeypatch.setattr(Pretraining, "loss", mixes)
    with pytest.raises(RuntimeError, match="device"):
        run(task, device)


@pytest.mark.parametrize(("stage", "words"), [("pretrain", PRETRAININGS[0]), ("finetune", "")])
def test_the_trial_of_memory_takes_what_a_step_takes_and_leaves_no_trace(
    tasks: Any, monkeypatch: pytest.MonkeyPatch, stage: str, words: str
) -> None:
    task = tasks(stage, [*TINY_MODEL, *words.split(), "--clips.colour_jitter", "0.2"])
    model = task.build_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rendered: list[torch.Size] = []
    render = ClipBatch.render

    def seen(self: ClipBatch) -> Tensor:
        assert self.colour is not None
        rendered.append(self.pixels.shape)
        return render(self)

    monkeypatch.setattr(ClipBatch, "render", seen)
    setup._try(task, model, Precision(torch.float32, "cpu"), 4, 2)
    side = model.config.frame_px
    assert rendered == [(2, task.training_data().num_frames, side, side, 3)]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
