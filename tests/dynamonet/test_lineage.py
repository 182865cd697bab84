"""From a model back to its shards, as a user asks for it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from dynamonet import __version__
from dynamonet.errors import UserError
from dynamonet.lineage import __main__ as lineage
from dynamonet.lineage.tracer import LineageNode
from dynamonet.shards.shard_set import ShardSet
from dynamonet.stage import StageSettings
from dynamonet.tracking import runs as tracked_runs
from dynamonet.tracking.origin import DatasetUse, Origin
from dynamonet.training.checkpoint.state import read_origin
from dynamonet.training.launch import TrainingResult
from pretrain import run
from tests.conftest import TINY_MODEL, tracked, without_ray

SHORT = "--max_steps 2 --checkpoint_every_steps 1 --holdout_share 0.3 --precision fp32".split()


@pytest.fixture(scope="module")
def finished(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """One pretraining of two steps."""
    runs = str(tmp_path_factory.mktemp("runs"))
    words = ["--shards", str(shard_set), *TINY_MODEL, *SHORT, "--runs", runs, "--name", "first"]
    with without_ray():
        return run.main(words)


def edited(home: Path, file_name: str, /, **values: Any) -> None:
    """Changes entries of the record in a model's description or a card."""
    file = home / file_name
    content = json.loads(file.read_text())
    content["run"].update(values)
    file.write_text(json.dumps(content))


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_model_is_traced_to_its_run_and_to_the_shards_run(
    finished: TrainingResult, shard_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = lineage.main([str(finished.model)])
    printed = capsys.readouterr().out
    shards = ShardSet.open(str(shard_set))
    assert (step.stage, step.name, step.status) == ("pretrain", "first", "finished")
    assert step.id == finished.run.run_id and step.folder == str(finished.folder)
    assert step.settings == f"{finished.folder}/settings.yaml" and Path(step.settings).is_file()
    assert step.datasets == [DatasetUse("set", str(shard_set), shards.digest, "training")]
    assert step.code.startswith(__version__) and step.started.endswith("UTC")
    (made,) = step.parents
    assert (made.stage, made.name, made.parents) == ("data_prep", "set", [])
    assert made.id == (shards.card.run or {})["id"] and made.status == "finished"
    assert made.settings == f"{shard_set}/records/settings.json"
    assert [s.changed + s.notes for s in (step, made)] == [[], []]
    assert "pretrain first\n  run " in printed and "\n    data_prep set\n      run " in printed
    lineage.main([str(finished.model), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["parents"][0]["datasets"][0]["digest"] == shards.digest


def test_checkpoint_run_folder_run_id_and_shard_set_lead_to_the_same(
    finished: TrainingResult, shard_set: Path
) -> None:
    runs = ["--runs", str(finished.folder.parents[1])]
    whole = lineage.main([str(finished.model)])
    for place in (finished.folder, finished.folder / "step-00000001", finished.run.run_id):
        assert lineage.main([str(place), *runs]) == whole
    assert lineage.main([str(shard_set)]) == whole.parents[0]


def test_a_moved_model_is_traced_by_its_own_record_when_no_store_answers(
    finished: TrainingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(finished.model, moved)
    server = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    record = json.loads((moved / "model.json").read_text())["run"]
    gone = f"sqlite:///{tmp_path}/gone.db"
    (parent,) = record["parents"]
    parent["tracking_uri"] = gone
    edited(moved, "model.json", tracking_uri=gone, folder=f"{tmp_path}/gone", parents=[parent])
    began = time.monotonic()
    step = lineage.main([str(moved)])
    assert time.monotonic() - began < 30  # MLflow alone tries for minutes
    (note,) = step.notes
    assert f"there is no file {tmp_path}/gone.db" in note and f"{server} cannot be read" in note
    assert not (tmp_path / "gone.db").exists()
    assert (step.stage, step.name, step.status, step.settings) == ("pretrain", "first", "", "")
    assert step.parents[0].stage == "data_prep" and step.parents[0].settings


def test_a_run_that_only_the_store_knows_is_traced_by_its_parents_tag(
    finished: TrainingResult, shard_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = ShardSet.open(str(shard_set))
    runs = finished.folder.parents[1]
    tuned = tracked_runs.start_run(
        "finetune",
        "third",
        StageSettings(runs=str(runs)),
        results=f"{runs}/finetune/third",
        parents=[finished.run.run_id, (shards.card.run or {})["id"]],
        datasets=[DatasetUse("set", str(shard_set), shards.digest, "training")],
    )
    step = lineage.main([tuned.run_id, "--runs", str(runs)])
    assert (step.stage, step.name, step.status) == ("finetune", "third", "running")
    assert step.settings == f"artifact settings.yaml of run {tuned.run_id}"
    before, made = step.parents
    assert (before.stage, before.name) == ("pretrain", "first") and before.parents[0].id == made.id
    # the shards' run lies in another store, and is known by the record in the pretraining's folder
    assert before.parents == [made] and (made.name, made.status) == ("set", "finished")
    assert "as above" in capsys.readouterr().out


def test_a_fine_tuned_model_says_which_weights_it_took_over(
    finished: TrainingResult, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    shutil.copytree(finished.model, taken)
    parent = read_origin(taken)
    assert parent is not None and parent.weights and parent.model == str(taken)
    tuned = tmp_path / "tuned"
    shutil.copytree(finished.model, tuned)
    child = Origin("f" * 32, stage="finetune", name="tuned", parents=(parent,))
    edited(tuned, "model.json", **{"folder": "", "datasets": [], **child.to_json()})
    assert lineage.main([str(tuned)]).parents[0].changed == []
    with (taken / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    (changed,) = lineage.main([str(tuned)]).parents[0].changed
    assert f"{taken}/model.safetensors: digest" in changed and "damaged" in changed
    shutil.rmtree(taken)
    (changed,) = lineage.main([str(tuned)]).parents[0].changed
    assert changed == f"the model is no longer in {taken}"


def test_changed_shards_and_code_are_told(
    finished: TrainingResult, shard_set: Path, tmp_path: Path
) -> None:
    model, shards = tmp_path / "model", tmp_path / "set"
    shutil.copytree(finished.model, model)
    shutil.copytree(shard_set, shards)
    (use,) = json.loads((model / "model.json").read_text())["run"]["datasets"]
    edited(model, "model.json", datasets=[{**use, "path": str(shards)}], code="0.0.9 abc")

    def traced() -> LineageNode:
        return lineage.main([str(model)])

    (code,) = traced().changed
    assert code.startswith(f"the code is now {__version__}")
    tar = sorted(shards.glob("*.tar"))[0]
    content = tar.read_bytes()
    tar.write_bytes(content[:-1000])
    assert "bytes instead of" in traced().changed[1]
    tar.write_bytes(content)
    card = json.loads((shards / "card.json").read_text())
    (shards / "card.json").write_text(json.dumps({**card, "digest": "0" * 32}))
    assert traced().changed[1] == f"the shards in {shards} now have digest {'0' * 32}"
    shutil.rmtree(shards)
    assert traced().changed[1] == f"the shards are no longer in {shards}"


def test_a_run_deleted_in_the_store_is_told(finished: TrainingResult, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    made = tracked("finetune", runs / "lost", StageSettings())
    MlflowClient(made.uri).delete_run(made.run_id)
    step = lineage.main([made.run_id, "--runs", str(runs)])
    assert step.notes == ["the run was deleted in the tracking store"]


@pytest.mark.slow
def test_what_is_not_there_is_named_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)nothing to trace.*model.json.*run.json.*card.json"):
        lineage.main([str(tmp_path)])
    with pytest.raises(UserError, match=r"(?s)run 0{32}: .*there is no file.*--runs"):
        lineage.main(["0" * 32])
    (tmp_path / "model.json").write_text('{"format_version": 1, "model": {}}')
    with pytest.raises(UserError, match="does not say which run made it"):
        lineage.main([str(tmp_path)])
    command = [sys.executable, "-m", "dynamonet.lineage", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "nothing to trace" in done.stderr
    assert "Traceback" not in done.stderr
