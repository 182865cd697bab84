"""The training loop on its own, without Ray: stops, refused steps, checkpoints, settings."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor, nn

from dynamonet.command_line import load
from dynamonet.errors import UserError
from dynamonet.model.network import DynamoNet
from dynamonet.tracking import runs as tracked_runs
from dynamonet.training.checkpoint import store as checkpoint_store
from dynamonet.training.checkpoint.state import read_state
from dynamonet.training.checkpoint.store import newest
from dynamonet.training.logs.metrics import Sums
from dynamonet.training.numerics.nonfinite import Replay
from dynamonet.training.train_step import Gradients
from dynamonet.training.trainer import Trainer
from dynamonet.video.transforms import ClipBatch
from pretrain.objective import Pretraining
from pretrain.settings import PretrainSettings
from tests.conftest import TINY_MODEL, logged, tracked, training_alone

BASE = [*TINY_MODEL, "--precision", "fp32", "--max_steps", "6", "--epochs", "50"]
BASE += "--log_every_steps 2 --evaluate_every_steps 100 --checkpoint_every_steps 100".split()


@dataclass(frozen=True)
class Trouble(Pretraining):
    """A pretraining into which something is planted."""

    nan_at: tuple[int, ...] = ()

    def loss(self, model: nn.Module, frames: Tensor, batch: ClipBatch) -> tuple[Tensor, Sums]:
        loss, sums = super().loss(model, frames, batch)
        CALLS.append(len(frames))
        if len(CALLS) in self.nan_at:
            loss = loss * float("nan")
        return loss, sums


CALLS: list[int] = []


class Bench:
    """Runs trainings of one run folder in this process."""

    def __init__(self, shards: Path, home: Path) -> None:
        self.shards, self.home, self.said = shards, home, list[str]()
        home.mkdir(parents=True)
        self.run = tracked("pretrain", home, self.settings())

    def settings(self, *words: str) -> PretrainSettings:
        argv = [*BASE, *words]
        return load(PretrainSettings, argv, prog="")

    def training(self, *words: str, nan_at: tuple[int, ...] = (), **more: Any) -> Trainer:
        CALLS.clear()
        task = Trouble(self.settings(*words), (str(self.shards),), nan_at=nan_at)
        self.messages: queue.Queue[tuple[Any, ...]] = queue.Queue()
        return training_alone(task, self.run, self.home, self.messages, **more)

    def train(self, *words: str, nan_at: tuple[int, ...] = ()) -> Trainer:
        with logged(self.said):
            training = self.training(*words, nan_at=nan_at)
            training.run()
        return training

    def losses(self) -> dict[int, float]:
        history = MlflowClient(self.run.uri).get_metric_history(self.run.run_id, "train/loss")
        assert len({m.step for m in history}) == len(history), "a step was logged twice"
        return {m.step: m.value for m in history}

    def weights(self) -> dict[str, Tensor]:
        from dynamonet.model.files import read_weights

        folder = newest(self.home)
        assert folder is not None
        return read_weights(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tracking store for all, since making one takes seconds."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def bench(shard_set: Path, runs: Path) -> Callable[..., Bench]:
    return lambda name="run": Bench(shard_set, runs / f"{len(list(runs.iterdir()))}-{name}")


def equal(a: dict[str, Tensor], b: dict[str, Tensor], rtol: float = 0, atol: float = 0) -> bool:
    return all(torch.allclose(a[key].double(), b[key].double(), rtol, atol) for key in a)


def test_a_stop_ends_after_the_step_and_the_run_goes_on_the_same(
    bench: Callable[..., Bench],
) -> None:
    whole, stopped = bench("whole"), bench("stopped")
    whole.train("--ema_decay", "0.9")
    training = stopped.training("--ema_decay", "0.9")
    compute = training.train_step.gradients

    def stop_at_three(number: int, batch: ClipBatch) -> Gradients:
        training.heartbeat.stop = number == 2
        return compute(number, batch)

    training.train_step.gradients = stop_at_three  # type: ignore[method-assign]
    training.run()
    (only,) = stopped.home.glob("step-*")
    assert only.name == "step-00000003" and read_state(only).step == 3
    stopped.train("--ema_decay", "0.9")
    assert "resumed  after step 3 of 6" in stopped.said
    assert stopped.losses() == whole.losses() and equal(stopped.weights(), whole.weights())


def test_a_node_about_to_go_leaves_a_checkpoint_and_the_training_goes_on(
    bench: Callable[..., Bench],
) -> None:
    run = bench()
    run.training("--keep_checkpoints", "9", draining=lambda: True).run()
    assert sorted(f.name for f in run.home.glob("step-*")) == ["step-00000002", "step-00000006"]


def test_checkpoints_by_the_clock(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench()
    training = run.training("--checkpoint_every_minutes", "10", "--keep_checkpoints", "9")
    step = training.train_step.gradients

    def slow(number: int, batch: ClipBatch) -> Gradients:
        training.saved_at -= 300  # five minutes a step
        return step(number, batch)

    training.train_step.gradients = slow  # type: ignore[method-assign]
    training.run()
    names = sorted(f.name for f in run.home.glob("step-*"))
    assert names == ["step-00000002", "step-00000004", "step-00000006"]


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
    assert "step 3: loss nan" in text and f"the output of {layer}" in text
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
    assert not gradients.finite
    training.clock.step(1, training.total_steps)
    training._refuse(0, batch, gradients)
    assert equal(before, training.train_state.model.state_dict())


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
        assert len(CALLS) == (1 if training is whole else 4) and sum(CALLS) == 4
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
    assert training.train_state.scaler.is_enabled() and training.precision.dtype == torch.float16
    training.train_state.scaler.scale(torch.ones(1))
    training.train_state.scaler.update(64.0)
    training.run()
    assert run.training(*words).train_state.scaler.get_scale() == 64.0


@pytest.mark.slow
def test_damage_is_counted_by_epoch_over_all_ranks_and_kept_over_restarts(
    bench: Callable[..., Bench],
) -> None:
    words = ("--holdout_share", "0", "--max_steps", "6", "--checkpoint_every_steps", "1")
    allowed = ("--loader.max_failed_share", "0.25")  # two of the eight clips of an epoch

    def training_with(run: Bench, damage: dict[int, int]) -> Trainer:
        """Returns a training that finds so many damaged clips at each step."""
        training = run.training(*words, *allowed)
        read = training._batches

        def marked() -> Iterator[tuple[int, ClipBatch]]:
            for step, batch in read():
                yield step, replace(batch, failures=("damaged",) * damage.get(step, 0))

        training._batches = marked  # type: ignore[method-assign]
        return training

    many = r"(?s)3 samples of this epoch are damaged.*max_failed_share = 0.25.*--repair"
    assert bench("length").training(*words).plan.steps == 2
    training_with(bench("spread"), dict.fromkeys(range(6), 1)).run()  # two in each epoch
    with pytest.raises(UserError, match=many):
        training_with(bench("many"), {0: 1, 1: 1, 2: 1, 3: 2}).run()
    run = bench("restarted")
    stopped = training_with(run, {0: 2})
    stopped.heartbeat.stop = True
    stopped.run()
    folder = newest(run.home)
    assert folder is not None and read_state(folder).damaged == 2
    with pytest.raises(UserError, match=many):
        training_with(run, {1: 1}).run()


def test_a_damaged_checkpoint_is_passed_over_and_said(bench: Callable[..., Bench]) -> None:
    whole, run = bench("whole"), bench("run")
    whole.train()
    words = "--checkpoint_every_steps 2 --keep_checkpoints 9".split()
    run.train(*words)
    victim = run.home / "step-00000006/model.safetensors"
    content = bytearray(victim.read_bytes())
    content[-7] ^= 1
    victim.write_bytes(content)
    (run.home / "step-00000004/training.pt").unlink()
    run.said.clear()
    run.train(*words)
    text = "\n".join(run.said)
    assert "damaged  step-00000006: model.safetensors is not what was written" in text
    assert "damaged  step-00000004: training.pt is missing" in text
    assert "resumed  after step 2 of 6" in text
    assert equal(run.weights(), whole.weights()) and run.losses() == whole.losses()
    for folder in run.home.glob("step-*"):
        (folder / "training.pt").unlink()
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        run.train(*words)


def test_a_checkpoint_that_cannot_be_written_stops_the_run_loudly(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seal = bench(), checkpoint_store._seal
    written = threading.Event()

    def full(folder: Path, head: dict[str, Any]) -> None:
        if head["step"] == 2:
            seal(folder, head)
            written.set()
        else:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_store, "_seal", full)
    with pytest.raises(UserError, match=r"(?s)step 4 cannot be written.*No space left.*000002"):
        run.train("--checkpoint_every_steps", "2")
    assert written.is_set()
    assert sorted(f.name for f in run.home.glob("*step-*")) == ["step-00000002"]
    monkeypatch.undo()
    run.train("--checkpoint_every_steps", "2")
    assert sorted(run.losses()) == [1, 2, 3, 4, 5, 6]


def test_steps_logged_before_the_first_checkpoint_are_not_logged_again(
    bench: Callable[..., Bench],
) -> None:
    run = bench()
    with pytest.raises(UserError, match="step 5: loss nan"):
        run.train(nan_at=(5,))
    assert not list(run.home.glob("step-*"))
    run.train()
    assert sorted(run.losses()) == [1, 2, 3, 4, 5, 6]


def fill(folder: Path) -> None:
    (folder / "weights").write_text("x")


def test_the_newest_and_the_best_checkpoint_are_kept(tmp_path: Path) -> None:
    store = checkpoint_store.CheckpointStore(tmp_path, 2, "val/skill")
    for step, skill in enumerate([0.1, 0.5, 0.3, 0.5, 0.2, 0.1], 1):
        store.begin(step, fill, {"val/skill": skill} if step != 3 else {})
    store.wait()
    names = sorted(f.name for f in tmp_path.iterdir())
    assert names == ["step-00000002", "step-00000005", "step-00000006"]
    found = checkpoint_store.best(tmp_path, "val/skill")
    assert found is not None and found.name == "step-00000002"


def test_a_store_that_is_away_delays_metrics_and_stops_nothing(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench()
    log = tracked_runs.TrackedRun.log_metrics

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(tracked_runs.TrackedRun, "log_metrics", away)
    run.train("--max_steps", "4")
    text = "\n".join(run.said)
    assert "does not answer, metrics are held back: nobody answers" in text
    assert set(json.loads((run.home / "unsent-metrics.json").read_text())) == {"1", "2", "3", "4"}
    monkeypatch.setattr(tracked_runs.TrackedRun, "log_metrics", log)
    run.train()
    assert sorted(run.losses()) == [1, 2, 3, 4, 5, 6]
    assert not (run.home / "unsent-metrics.json").exists()


def test_a_clock_that_jumps_changes_nothing(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    whole, run = bench("whole"), bench("run")
    words = "--checkpoint_every_minutes 1000 --max_steps 4".split()
    whole.train(*words)
    jumps = iter(range(10**6))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 86400 * 365)
    run.train(*words)
    monkeypatch.undo()
    assert run.losses() == whole.losses() and equal(run.weights(), whole.weights())
    assert [f.name for f in run.home.glob("step-*")] == ["step-00000004"]


def test_the_clock_ends_a_training_and_its_rate_falls_with_it(bench: Callable[..., Bench]) -> None:
    mine = bench()
    words = "--max_minutes 0.03 --max_steps 100000 --log_every_steps 1".split()
    trained = mine.train(*words)
    folder = newest(mine.home)
    assert folder is not None
    state = read_state(folder)
    assert 1 < state.step == state.total_steps < 100_000 and state.minutes >= 0.03
    client = MlflowClient(mine.run.uri)
    rates = [m.value for m in client.get_metric_history(mine.run.run_id, "train/lr")]
    assert len(rates) == state.step and rates[-1] < 0.5 * max(rates)
    assert trained.state.step == state.step

    again = mine.training(*words)  # its time is spent: one step, and it is over
    again.state.minutes = 0.03
    again.total_steps = 100_000
    again.run()
    assert again.state.step == state.step + 1 == again.total_steps


def test_steps_end_a_training_before_its_minutes_do(bench: Callable[..., Bench]) -> None:
    trained = bench().train("--max_minutes", "60", "--max_steps", "3")
    assert trained.state.step == trained.state.total_steps == 3
