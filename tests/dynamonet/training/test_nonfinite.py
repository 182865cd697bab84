"""Steps that are not finite: refused, named, kept to be replayed, or skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor, nn

from dynamonet.errors import UserError
from dynamonet.training.checkpoint.state import read_state
from dynamonet.training.checkpoint.store import newest
from dynamonet.training.logs.metrics import Sums
from dynamonet.training.numerics.nonfinite import Replay
from dynamonet.training.train_step import Gradients
from dynamonet.training.trainer import Trainer
from dynamonet.video.transforms import ClipBatch
from pretrain.objective import Pretraining
from tests.dynamonet.training.conftest import Bench, equal
from tests.dynamonet.training.two_ranks import on_two_ranks


def test_a_step_that_is_not_finite_names_samples_and_layer_and_can_be_replayed(
    bench: Callable[..., Bench],
) -> None:
    run = bench()
    training = run.training()
    run_to = training.train_step.gradients

    def break_a_layer(number: int, batch: ClipBatch) -> Gradients:
        if number == 2:
            with torch.no_grad():
                training.train_state.model.trunk.stages[1].res_blocks[0].branch2[0].weight[0] = 3e38  # type: ignore[index, union-attr]
        return run_to(number, batch)

    training.train_step.gradients = break_a_layer  # type: ignore[method-assign]
    with pytest.raises(UserError) as caught:
        training.run()
    text = str(caught.value)
    layer = "trunk.stages.1.res_blocks.0.branch2.0"
    assert "step 3: " in text
    assert f"rank 0: loss nan; first not finite: the output of {layer}. Samples" in text
    assert "Nothing was updated" in text
    folder = run.home / "nonfinite/step-00000003"
    assert not [f for f in folder.iterdir() if f.suffix not in (".safetensors", ".json")]
    replay = Replay.read(folder)
    assert replay.facts["samples"][0][0].endswith(".tar") and len(replay.batch) == 4
    assert replay.layers()[0] == layer
    for _, key in replay.facts["samples"]:
        assert key in text


def test_steps_that_are_not_finite_are_skipped_and_counted(bench: Callable[..., Bench]) -> None:
    run, words = bench(), "--on_nonfinite skip --max_skipped_share 0.4".split()
    run.train(*words, nan_at=(2, 5))
    assert sorted(run.losses()) == [1, 3, 4, 6]
    assert all(bool(torch.isfinite(v).all()) for v in run.weights().values())
    metrics = MlflowClient(run.run.uri).get_run(run.run.run_id).data.metrics
    assert metrics["train/skipped_steps"] == 2
    last = newest(run.home)
    assert last is not None and read_state(last).skipped == 2
    again = bench("again")
    with pytest.raises(UserError, match=r"3 such steps, more than max_skipped_share = 0.4"):
        again.train(*words, nan_at=(2, 3, 5))


def test_a_skipped_step_leaves_batch_norm_and_weights_alone(bench: Callable[..., Bench]) -> None:
    run = bench()
    training = run.training("--on_nonfinite", "skip", nan_at=(1,))
    before = {k: v.clone() for k, v in training.train_state.model.state_dict().items()}
    _, batch = next(iter(training._batches()))
    gradients = training.train_step.gradients(0, batch)
    assert gradients.broken.tolist() == [True, True]
    training.clock.step(1, training.total_steps)
    training._refuse(0, batch, gradients)
    assert equal(before, training.train_state.model.state_dict())


def break_a_clip_of_rank_1(training: Trainer) -> None:
    """Makes a loss of rank 1 nan in the second step; the sum over ranks spreads it to both."""
    compute = training.task.loss

    def loss(model: nn.Module, frames: Tensor, batch: ClipBatch) -> tuple[Tensor, Sums]:
        if training.heartbeat.step == 1 and training.rank.index == 1:
            frames = frames * float("nan")
        return compute(model, frames, batch)

    object.__setattr__(training.task, "loss", loss)


@pytest.mark.slow
def test_only_the_rank_and_the_samples_that_gave_it_are_named(bench: Callable[..., Bench]) -> None:
    run = bench()
    task = Pretraining(run.settings("--num_workers", "2"), (str(run.shards),))
    first, second = on_two_ranks(task, run.run, run.home, break_a_clip_of_rank_1)
    assert "step 2: " in first and "rank 1: loss nan; first not finite: the output of " in first
    assert "rank 0:" not in first and first == second
    facts = [Replay.read(run.home / "nonfinite/step-00000002", rank).facts for rank in (0, 1)]
    for _, key in facts[1]["samples"]:
        assert key in first
    assert not facts[0]["layers"] and not facts[0]["gradients"] and facts[1]["gradients"]


class Explodes(torch.autograd.Function):
    """Passes values on, and breaks what comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0] * float("inf")


def test_what_breaks_on_the_way_back_is_named_before_clipping_spreads_it(
    bench: Callable[..., Bench],
) -> None:
    run = bench()
    training = run.training()
    stage = training.train_state.model.trunk.stages[1]
    stage.register_forward_hook(lambda _, __, out: Explodes.apply(out))
    with pytest.raises(UserError, match="first not finite on the way back: the gradient of ") as e:
        training.run()
    (facts,) = (Replay.read(run.home / "nonfinite/step-00000001").facts,)
    assert "trunk.stages.1." in str(e.value).split("gradient of ")[1].split()[0]
    assert not any("motion" in name or "stages.2" in name for name in facts["gradients"])
