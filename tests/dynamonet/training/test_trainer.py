"""The training loop on its own, without Ray: stops, checkpoints, damage, the clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from dynamonet.errors import UserError
from dynamonet.shards.shard_set import ShardSet
from dynamonet.training.checkpoint import store as checkpoint_store
from dynamonet.training.checkpoint.state import read_state
from dynamonet.training.checkpoint.store import newest
from dynamonet.training.train_step import Gradients
from dynamonet.training.trainer import Trainer
from dynamonet.video.transforms import ClipBatch
from tests.dynamonet.training.conftest import Bench, equal


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


def test_a_stop_is_heard_inside_an_evaluation_which_the_next_start_makes(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = bench("whole"), bench("run")
    words = "--evaluate_every_steps 2 --micro_batch 1 --holdout_share 0.5 --max_steps 4".split()
    whole.train(*words)
    training = run.training(*words)
    asked = iter([False, True])

    def stops() -> bool:
        return next(asked)

    training.measuring = replace(training.measuring, stops=stops)
    training.run()
    state = read_state(run.home / "step-00000002")
    assert state.step == 2 and state.unmeasured
    run.train(*words)

    def skills(bench: Bench) -> dict[int, float]:
        history = MlflowClient(bench.run.uri).get_metric_history(bench.run.run_id, "val/skill")
        return {m.step: m.value for m in history}

    assert sorted(skills(run)) == [2, 4] and skills(run) == skills(whole)
    assert run.losses() == whole.losses() and equal(run.weights(), whole.weights())
    manifest = checkpoint_store.read_manifest(run.home / "step-00000002")
    assert manifest["metrics"]["val/skill"] == skills(run)[2]


def test_an_index_is_opened_once_by_a_training(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, run = [], bench()
    read = ShardSet.open

    def counted(path: str) -> ShardSet:
        opened.append(path)
        return read(path)

    monkeypatch.setattr(ShardSet, "open", counted)
    run.train("--evaluate_every_steps", "2", "--checkpoint_every_steps", "2")
    assert len(opened) == 1
