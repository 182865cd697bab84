"""A finished model, measured again by itself: as its training's test measured it."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from dynamonet.errors import UserError
from dynamonet.model.config import ModelConfig, TrunkConfig
from dynamonet.model.network import DynamoNet
from finetune import measure, run
from finetune.predict import main as predict
from finetune.prediction.videos import FilePredictions
from finetune.train.experiment import Result
from tests.conftest import without_ray

WORDS = (
    "--max_steps 2 --epochs 50 --test_clips 2 --precision fp32 --clips.canvas_px 32 "
    "--loader.batch_size 4 --loader.processes 0 --clips.flip false --pretrained none"
).split()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a classifier, in a folder."""
    folder = tmp_path_factory.mktemp("model")
    trunk = TrunkConfig(depth=10, width=4, stem_pool=False, temporal_strides=(1, 2, 2, 1))
    DynamoNet(ModelConfig(num_frames=8, frame_px=32, trunk=trunk)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["full", "ridge"])
def tuned(
    shard_set: Path,
    model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Result:
    words = ["--shards", str(shard_set), "--runs", str(tmp_path_factory.mktemp("runs"))]
    words += ["--recipe", request.param, "--pretrained", str(model), "--name", "tuned"]
    with without_ray():
        return run.main([*words, *WORDS[:-2]]).runs[0]


def measured(tuned: Result, shards: Path, *words: str) -> measure.Measured:
    own = ["--shards", str(shards), "--runs", str(tuned.folder.parents[1]), "--processes", "0"]
    return measure.main([str(tuned.folder), *own, "--precision", "fp32", *words])


def test_a_measurement_finds_what_the_test_found_and_is_counted(
    tuned: Result, shard_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(tuned, shard_set, "--clips", "2", "--name", "again")
    assert found.metrics == pytest.approx(tuned.metrics, abs=1e-3)
    first, again = (
        pq.read_table(folder / "test/predictions.parquet").to_pylist()
        for folder in (tuned.folder, found.folder)
    )
    for a, b in zip(first, again, strict=True):
        assert (a["source"], a["label"]) == (b["source"], b["label"])
        assert a["label_probability"] == pytest.approx(b["label_probability"], abs=1e-3)
    assert "the 2nd time on these videos, 2 settings so far" in capsys.readouterr().out
    client = MlflowClient(found.run.uri)
    about = client.get_run(found.run.run_id).data
    assert about.tags["dynamonet.parents"].startswith(tuned.run.run_id)
    assert about.tags["mlflow.source.name"] == "finetune/measure.py"
    assert "test/confusion.png" in {f.path for f in client.list_artifacts(found.run.run_id, "test")}
    with pytest.raises(UserError, match="taken by another measurement"):
        measured(tuned, shard_set, "--name", "again")


def test_what_cannot_be_measured_is_refused(
    tuned: Result, shard_set: Path, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no split 2; this set has splits 1\.\.1"):
        measured(tuned, shard_set, "--split", "2")
    with pytest.raises(UserError, match="has no val video"):
        measured(tuned, shard_set, "--part", "val")
    own = ["--shards", str(shard_set), "--runs", str(tmp_path), "--processes", "0"]
    with pytest.raises(UserError, match="this model has no classifier; expected a fine-tuned one"):
        measure.main([str(model), *own])
    named = DynamoNet.from_pretrained(tuned.model)
    if named.config.num_classes is not None:
        named.facts["classes"] = ["left", "other"]
        named.save_pretrained(tmp_path / "other")
        with pytest.raises(UserError, match=r"does not know 1 of the 2 classes of .*: right; its"):
            measure.main([str(tmp_path / "other"), *own])
    assert not (tmp_path / "measure").exists() or not [*(tmp_path / "measure").iterdir()]


def test_a_tuned_model_predicts_videos(
    tuned: Result, video_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = predict([str(tuned.model), str(video_folder), "--processes", "0"])
    assert isinstance(found, FilePredictions)
    assert {score.class_name for video in found.videos for score in video.top} == {"left", "right"}
    for video in found.videos:
        assert sum(score.probability for score in video.top) == pytest.approx(1)
