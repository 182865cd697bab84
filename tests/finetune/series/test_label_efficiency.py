"""The label-efficiency curve from its command to its files, and two of its runs compared."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dynamonet.errors import UserError
from dynamonet.model.network import DynamoNet
from dynamonet.tracking.store import tracking_uri
from finetune import compare, label_curve
from tests.conftest import without_ray
from tests.finetune.train.test_recipes import SMALL, TINY

WORDS = f"--max_steps 1 --test_clips 1 {SMALL} --seeds 0 1 --name curve".split()


@pytest.fixture
def words(shard_set: Path, tmp_path: Path) -> list[str]:
    DynamoNet(TINY).save_pretrained(tmp_path / "own")
    places = ["--shards", str(shard_set), "--runs", str(tmp_path)]
    return [*places, "--pretrained", str(tmp_path / "own"), *WORDS]


def test_a_curve_is_printed_written_and_tracked_and_its_runs_can_be_compared(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with without_ray():
        points = label_curve.main([*words, "--shares", "0.2", "1"])
    printed = capsys.readouterr().out
    assert [point.train_videos for point in points] == [2, 8]
    assert printed.count(" minutes") == 8 and "seed 0, 1, from scratch" in printed
    folder = tmp_path / "finetune"
    rows = list(csv.DictReader((folder / "curve.csv").open(encoding="utf-8")))
    assert [(row["label_share"], row["runs"]) for row in rows] == [("0.2", "2")] * 2 + [
        ("1.0", "2")
    ] * 2
    client = MlflowClient(tracking_uri(str(tmp_path)))
    (experiment,) = [each for each in client.search_experiments() if each.name == "dynamonet"]
    found = client.search_runs([experiment.experiment_id])
    (above,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert len(found) == 9
    assert above.inputs is not None and above.inputs.dataset_inputs[0].dataset.name == "set"
    history = client.get_metric_history(above.info.run_id, "test/top1 pretrained")
    assert {each.step for each in history} == {2, 8}
    names = {file.path for file in client.list_artifacts(above.info.run_id)}
    assert {"curve.csv", "curve.png"} <= names
    sides = [
        [str(folder / f"curve-100-{way}-split1-seed{seed}") for seed in (0, 1)]
        for way in ("scratch", "pretrained")
    ]
    compare.main(["--a", *sides[0], "--b", *sides[1]])
    printed = capsys.readouterr().out
    assert "B - A " in printed and "p = " in printed and "from scratch" in printed


def test_what_a_curve_cannot_tell_is_refused_before_it_begins(
    words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"--shares 0.01 and 0.02: both are 2 videos"):
        label_curve.main([*words, "--shares", "0.01", "0.02"])
    with pytest.raises(UserError, match="--test false: the curve is one of accuracies"):
        label_curve.main([*words, "--test", "false"])
    assert not [*tmp_path.glob("finetune/*")]
