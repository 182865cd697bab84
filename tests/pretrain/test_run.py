"""Stage 2 as a user runs it: real shards, real Ray Train, real MLflow."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from dynamonet.errors import UserError
from dynamonet.model.network import DynamoNet
from dynamonet.training.launch import TrainingResult
from pretrain import run
from pretrain.settings import WORTH_CLIPS, PretrainSettings
from tests.conftest import ROOT, TINY_MODEL, stop_driver

SHORT = "--max_steps 6 --epochs 50 --evaluate_every_steps 3 --log_every_steps 2".split()
SHORT += (
    "--checkpoint_every_steps 3 --holdout_share 0.3 --precision fp32 --probe.drawn_clips 32".split()
)


def train(shards: Path, *words: str) -> TrainingResult:
    return run.main(["--shards", str(shards), *TINY_MODEL, *SHORT, *words])


def losses(done: TrainingResult) -> list[float]:
    history = MlflowClient(done.run.uri).get_metric_history(done.run.run_id, "train/loss")
    steps = [m.step for m in history]
    assert steps == sorted(set(steps)), "a step was logged twice"
    return [m.value for m in history]


PRINTED: list[str] = []  # by that run


@pytest.fixture(scope="module")
def finished(
    shard_set: Path, cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> TrainingResult:
    """One pretraining of six steps on one worker."""
    runs = tmp_path_factory.mktemp("runs")
    with redirect_stdout(io.StringIO()) as out:
        done = train(shard_set, "--runs", str(runs), "--name", "whole")
    PRINTED.append(out.getvalue())
    return done


def test_it_says_how_long_it_takes_and_what_that_buys(finished: TrainingResult) -> None:
    (text,) = PRINTED
    clips = 6 * 4  # steps of so many
    few = f"fewer than the {WORTH_CLIPS:,} from which pretraining paid"
    assert re.search(rf"length   {clips} clips seen in all, .*left; {few}", text)
    assert f"seen     {clips} clips; {few}" in text
    assert re.search(r"verdict  frozen, 32 clips of drawn actions: .* now .* learnt", text)
    assert re.search(r"more     .*ten times the video", text)
    page = (finished.folder / "report.html").read_text("utf-8")
    assert "<b>Verdict:</b> frozen, 32 clips of drawn actions" in page


def test_a_finished_run_leaves_model_checkpoints_settings_and_state(
    finished: TrainingResult,
) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert {"model", "run.json", "settings.yaml", "step-00000003", "step-00000006"} <= names
    assert json.loads((finished.folder / "run.json").read_text())["status"] == "finished"
    model = DynamoNet.from_pretrained(finished.model)
    assert model(torch.zeros(1, 3, 8, 32, 32)).predicted[0].shape == (1, 3, 8, 16, 16)
    description = json.loads((finished.model / "model.json").read_text())
    assert description["run"]["id"] == finished.run.run_id


def test_mlflow_has_steps_epochs_speed_skill_pictures_and_the_parent(
    finished: TrainingResult, shard_set: Path
) -> None:
    client = MlflowClient(finished.run.uri)
    found = client.get_run(finished.run.run_id)
    assert found.info.status == "FINISHED"
    assert len(losses(finished)) == 6
    for name in (
        "train/skill",
        "train/lr",
        "train/clips_per_second",
        "train/data_wait_share",
        "epoch/loss",
        "epoch/skill",
        "val/skill",
        "val/skill_upper_bound",
        "val/skill_h1",
        "val/features_rank",
        "val/dmr_spread",
        "probe/top1",
        "verdict/own_top1",
        "train/mfu",
        "time/wait_ms",
        "time/backward_ms",
    ):
        assert name in found.data.metrics, name
    pictures = {item.path for item in client.list_artifacts(found.info.run_id, "panel")}
    kinds = ("filmstrip", "filters", "learning")
    assert {f"panel/{kind}-00000006.png" for kind in kinds} <= pictures
    assert found.data.tags["dynamonet.advice"]
    card = json.loads((shard_set / "card.json").read_text())
    assert found.data.tags["dynamonet.parents"] == card["run"]["id"]
    assert found.data.tags["dynamonet.digest"] == card["digest"]
    assert found.data.params["optimizer.lr"] == "0.001"
    assert found.inputs is not None
    assert found.inputs.dataset_inputs[0].dataset.digest == card["digest"]
    assert client.list_artifacts(found.info.run_id, "model")


def test_test_videos_of_a_labelled_set_are_never_learnt_from(shard_set: Path) -> None:
    from dynamonet.shards.shard_set import ShardSet
    from pretrain.objective import Pretraining

    settings = PretrainSettings(holdout_share=0.3, model={"num_frames": 8})  # type: ignore[arg-type]
    task = Pretraining(settings, (str(shard_set),))
    shards = ShardSet.open(str(shard_set))
    test = set(shards.rows(split=1, part="test").numbers().tolist())
    learnt = set(task.training_data().rows.numbers().tolist())
    held = set(task._evaluation_reader.rows.numbers().tolist())
    assert learnt and held and not learnt & test and not held & test and not learnt & held


def test_running_a_finished_run_again_does_nothing(
    finished: TrainingResult, shard_set: Path
) -> None:
    again = train(shard_set, "--runs", str(finished.folder.parents[1]), "--name", "whole")
    assert again.run.run_id == finished.run.run_id and len(losses(again)) == 6


def test_a_pretraining_goes_on_from_another_model(
    finished: TrainingResult, shard_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--pretrained", str(finished.model), "--optimizer.lr", "1e-9")
    done = train(shard_set, "--max_steps", "1", *words)
    assert "100% of the weights" in capsys.readouterr().out
    before, after = (DynamoNet.from_pretrained(each.model) for each in (finished, done))
    for a, b in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    parents = MlflowClient(done.run.uri).get_run(done.run.run_id).data.tags["dynamonet.parents"]
    assert finished.run.run_id in parents.split(",")
    with pytest.raises(UserError, match="is rgb"):
        train(shard_set, *words, "--model.input", "rgb")
    with pytest.raises(UserError, match="no model here"):
        train(shard_set, "--pretrained", "nowhere")


def test_two_workers_learn_the_same_as_one(finished: TrainingResult, shard_set: Path) -> None:
    pair = train(shard_set, *"--num_workers 2 --cpus_per_worker 1 --evaluate_every_steps 6".split())
    # batch norm sees two clips instead of four, so only the first step's data can be compared
    assert len(losses(pair)) == 6
    assert losses(pair)[0] == pytest.approx(losses(finished)[0], rel=0.2)


@pytest.mark.timeout(300)
def test_a_killed_run_goes_on_to_the_same_losses(finished: TrainingResult, shard_set: Path) -> None:
    words = ["--shards", str(shard_set), *TINY_MODEL, *SHORT, "--runs", "runs"]
    command = [sys.executable, str(ROOT / "pretrain/run.py"), *words]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while not list(Path("runs").glob("pretrain/*/step-*/files.json")):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.05)
    stop_driver(running, signal.SIGKILL)
    (folder,) = Path("runs/pretrain").iterdir()
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    done = run.main([*words, "--resume"])  # the same command
    assert done.folder == folder.absolute()
    assert losses(done) == losses(finished)
    assert MlflowClient(done.run.uri).get_run(done.run.run_id).info.status == "FINISHED"


def test_what_was_logged_before_a_kill_is_not_logged_again(finished: TrainingResult) -> None:
    last = finished.run.last_steps()
    assert last["train/loss"] == 6 and last["val/skill"] == 6
    finished.run.log_metrics({6: {"train/loss": 1.0, "new": 2.0}}, after=last)
    assert len(losses(finished)) == 6 and finished.run.metrics("new") == {"": 2.0}


def test_users_mistakes_are_refused_before_training(
    finished: TrainingResult, shard_set: Path, tmp_path: Path, cluster: None
) -> None:
    with pytest.raises(UserError, match=r"(?s)no shards here.*data_prep/shard.py --source"):
        train(tmp_path / "nothing")
    with pytest.raises(UserError, match="does not fit this cluster: 99 of 1 CPU wanted"):
        train(shard_set, "--num_workers", "99", "--loader.batch_size", "99")
    with pytest.raises(UserError, match="1 of 1 CPU and a GPU wanted, room for 0"):
        train(shard_set, "--device", "gpu")
    with pytest.raises(UserError, match=r"batch_size = 3 does not divide by num_workers = 2"):
        train(shard_set, "--num_workers", "2", "--cpus_per_worker", "1", "--loader.batch_size", "3")
    with pytest.raises(UserError, match="made with other settings or data"):
        runs = str(finished.folder.parents[1])
        train(shard_set, "--runs", runs, "--name", "whole", "--optimizer.lr", "0.5")
    with pytest.raises(UserError, match="choose a divisor of 16"):
        train(shard_set, "--model.filters.cell_px", "3")
    with pytest.raises(UserError, match="no segment is as long as a clip of 41 frames"):
        train(shard_set, "--model.num_frames", "40")
    with pytest.raises(UserError, match="mounted file system"):
        train(shard_set, "--runs", "s3://bucket/runs")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be made"):
        train(shard_set, "--runs", str(tmp_path / "file" / "runs"))


def test_a_loss_that_is_not_finite_stops_before_the_update(shard_set: Path, cluster: None) -> None:
    from dynamonet.errors import find_user_error

    with pytest.raises(Exception) as caught:
        train(
            shard_set,
            "--optimizer.lr",
            "1e30",
            "--optimizer.kind",
            "sgd",
            "--optimizer.clip_norm",
            "1e30",
            "--evaluate_every_steps",
            "6",
        )
    mistake = find_user_error(caught.value)
    assert mistake is not None and "Nothing was updated" in str(mistake)
    (folder,) = Path("runs/pretrain").iterdir()
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"


def test_more_ranks_and_loader_processes_than_samples_still_train(
    shard_set: Path, cluster: None
) -> None:
    words = "--num_workers 2 --cpus_per_worker 1 --loader.processes 3 --loader.batch_size 64"
    done = train(shard_set, *words.split(), "--max_steps", "2")
    assert len(losses(done)) == 2


def test_a_truncated_tar_is_named_with_the_command_that_rebuilds_it(
    shard_set: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "set"
    shutil.copytree(shard_set, copy)
    victim = sorted(copy.glob("*.tar"))[0]
    victim.write_bytes(victim.read_bytes()[:-5000])
    with pytest.raises(UserError, match=rf"(?s){victim.name}.*data_prep/verify.py .* --repair"):
        train(copy)
