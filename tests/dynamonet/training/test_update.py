"""What settings do to the update, through the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from dynamonet.model.network import DynamoNet
from dynamonet.training.trainer import Trainer
from pretrain.objective import Pretraining
from tests.dynamonet.training.conftest import CALLS, Bench, equal
from tests.dynamonet.training.test_parts import TINY
from tests.dynamonet.training.two_ranks import on_two_ranks


def test_gradients_add_up_over_parts(bench: Callable[..., Bench]) -> None:
    run, same = bench(), ("--movers.share", "0")  # which are drawn for each part
    whole, parts = run.training(*same), run.training(*same, "--micro_batch", "1")
    _, batch = next(iter(whole._batches()))
    found = []
    for training in (whole, parts):
        for module in training.train_state.model.modules():  # so that parts cannot see each other
            if isinstance(module, nn.BatchNorm3d):
                module.track_running_stats, module.running_mean, module.running_var = (
                    True, torch.zeros(module.num_features), torch.ones(module.num_features),
                )  # fmt: skip
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
                module.training = False
        CALLS.clear()
        training.train_step.gradients(0, batch)
        found.append([p.grad for p in training.train_state.model.parameters()])
        assert len(CALLS) == (1 if training is whole else 4) and sum(CALLS.values()) == 4
    for a, b in zip(*found, strict=True):
        assert a is not None and b is not None and torch.allclose(a, b, rtol=1e-3, atol=1e-6)


def first_block(model: DynamoNet) -> Any:
    stage: Any = model.trunk.stages[0]
    return stage.res_blocks[0]


def test_activations_computed_twice_change_nothing(bench: Callable[..., Bench]) -> None:
    plain, twice = bench("plain"), bench("twice")
    calls: list[str] = []
    training = twice.training("--activation_checkpointing", "true", "--ema_decay", "0.9")
    block = first_block(training.train_state.model)
    block.branch2.register_forward_hook(lambda *_: calls.append("forward"))
    averaged = first_block(training.train_state.result)
    assert averaged.forward.args[0] is averaged
    training.run()
    assert len(calls) == 12  # two a step
    plain.train("--ema_decay", "0.9")
    assert equal(plain.weights(), twice.weights(), 1e-4, 1e-6)


def test_the_average_is_kept_and_the_weights_train_on(bench: Callable[..., Bench]) -> None:
    plain, averaged = bench("plain"), bench("averaged")
    plain.train()
    training = averaged.train("--ema_decay", "0.9")
    assert plain.losses() == averaged.losses()
    own = training.train_state.model.state_dict()
    assert equal(own, plain.weights()) and not equal(own, averaged.weights())


@pytest.mark.parametrize("words", ["--optimizer.kind sgd", "--optimizer.clip_norm 0.001"])
def test_settings_of_the_update_change_the_weights(bench: Callable[..., Bench], words: str) -> None:
    plain, other = bench("plain"), bench("other")
    plain.train("--max_steps", "2")
    training = other.train("--max_steps", "2", *words.split())
    assert not equal(plain.weights(), other.weights())
    if "sgd" in words:
        assert isinstance(training.train_state.optimizer, torch.optim.SGD)


@pytest.mark.slow
def test_fp16_scales_its_loss_and_the_scale_is_resumed(bench: Callable[..., Bench]) -> None:
    run, words = bench(), ["--precision", "fp16"]
    training = run.training(*words, "--max_steps", "1")
    assert training.train_state.scaler.is_enabled()
    assert training.setup.precision.dtype == torch.float16
    training.train_state.scaler.scale(torch.ones(1))
    training.train_state.scaler.update(64.0)
    training.run()
    assert run.training(*words).train_state.scaler.get_scale() == 64.0


@pytest.mark.slow
def test_two_ranks_learn_the_same_as_one_over_twenty_steps(bench: Callable[..., Bench]) -> None:
    alone, pair = bench("alone"), bench("pair")
    words = ("--max_steps", "20", "--optimizer.lr", "1e-4")
    alone.train(*words, "--micro_batch", "2")  # batch norm sees as many clips as on each of two
    task = Pretraining(pair.settings(*words, "--num_workers", "2"), (str(pair.shards),))
    assert on_two_ranks(task, pair.run, pair.home, untouched) == ["", ""]
    one, two = alone.losses(), pair.losses()
    assert len(one) == 20 and two == pytest.approx(one, rel=1e-4)


def untouched(training: Trainer) -> None:
    return None


@pytest.mark.slow
def test_a_compiled_trunk_learns_the_same_without_breaks_or_recompiling(
    bench: Callable[..., Bench],
) -> None:
    plain, compiled = bench("plain"), bench("compiled")
    words = "--evaluate_every_steps 2 --holdout_share 0.3 --max_steps 4".split()
    plain.train(*words)
    torch._dynamo.reset()
    counters.clear()
    training = compiled.train(*words, "--compile", "on")  # evaluations have short batches
    assert training.setup.compiled
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"] and not counters["recompiles"]
    assert compiled.losses() == pytest.approx(plain.losses(), rel=1e-3)


def test_trunk_and_filters_are_one_graph_each() -> None:
    model = DynamoNet(TINY).train()
    torch._dynamo.reset()
    counters.clear()
    model.trunk.compile(backend="aot_eager", fullgraph=True)
    model.motion.compile(backend="aot_eager", fullgraph=True)
    for _ in range(3):
        model(torch.randn(2, 3, 8, 32, 32)).predicted[0].square().mean().backward()
    assert counters["stats"]["unique_graphs"] == 2 and not counters["recompiles"]
