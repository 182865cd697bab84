"""No accuracy on what was seen unsaid, and each look at a test part counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from data_prep.shard import main as shard
from dynamonet.errors import UserError
from dynamonet.model.files import facts, read_description
from dynamonet.model.network import DynamoNet
from dynamonet.shards.shard_set import ShardSet
from dynamonet.tracking.seen import TrainedOn
from dynamonet.training.start import model_at
from finetune import run
from finetune.evaluation.leakage import Seen, find_seen
from finetune.settings import FinetuneSettings, SeedSettings
from finetune.train.objective import Finetuning
from finetune.train.several import FinetuneResult
from pretrain import run as pretraining
from tests.conftest import TINY_MODEL, without_ray
from tests.dynamonet.copies.test_matching import encoded, motion_video

WORDS = (
    "--recipe full --max_steps 1 --epochs 50 --test_clips 1 --precision fp32 --clips.canvas_px 32 "
    "--loader.batch_size 4 --loader.processes 0 --clips.flip false"
).split()


@pytest.fixture(scope="module")
def runs(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results folder with one finished pretraining, named first."""
    runs = tmp_path_factory.mktemp("runs")
    words = "--max_steps 1 --holdout_share 0.3 --precision fp32 --name first".split()
    with without_ray():
        pretraining.main(["--shards", str(shard_set), *TINY_MODEL, *words, "--runs", str(runs)])
    return runs


def digests(shards: ShardSet, part: str) -> list[str]:
    rows = shards.rows(split=1, part=part).numbers()
    return shards.table["source_digest"].take(rows).to_pylist()


def finetune(shards: Path, runs: Path, *words: str) -> FinetuneResult:
    with without_ray():
        return run.main(["--shards", str(shards), "--runs", str(runs), *WORDS, *words])


def test_a_model_knows_which_videos_it_was_trained_on(shard_set: Path, runs: Path) -> None:
    shards = ShardSet.open(str(shard_set))
    trained = digests(shards, "train")
    found = TrainedOn.read(runs / "pretrain/first/model")
    assert found.complete and found.digests.dtype == np.uint64
    assert 0 < found.has(trained).sum() == len(found.digests) < len(set(trained))  # some held out
    (checkpoint,) = (runs / "pretrain/first").glob("step-*")
    assert (TrainedOn.read(checkpoint).digests == found.digests).all()
    (result,) = finetune(shard_set, runs, "--name", "knows").runs
    seen = TrainedOn.read(result.model)
    assert seen.complete and (seen.digests == TrainedOn.of(trained).digests).all()
    assert result.protocol is not None and not result.protocol.seen


def test_what_is_not_known_of_weights_is_not_known_of_what_is_trained_from_them(
    shard_set: Path, runs: Path, tmp_path: Path
) -> None:
    shards, place = ShardSet.open(str(shard_set)), tmp_path / "theirs"
    DynamoNet.from_pretrained(runs / "pretrain/first/model").save_pretrained(place)
    first = finetune(shard_set, tmp_path, "--pretrained", str(place), "--name", "first").runs[0]
    second = finetune(shard_set, tmp_path, "--pretrained", str(first.folder), "--name", "next")
    for result in (first, *second.runs):
        known = TrainedOn.read(result.model)
        assert known.has(digests(shards, "train")).all() and not known.complete
        assert result.protocol is not None and "not known" in result.protocol.seen


def test_weights_that_have_seen_test_videos_are_refused_or_named(
    shard_set: Path, runs: Path, tmp_path: Path
) -> None:
    shards, place = ShardSet.open(str(shard_set)), tmp_path / "model"
    shutil.copytree(runs / "pretrain/first/model", place)
    rows = shards.rows(split=1, part="test").numbers()[:1]
    (name,) = shards.table["source"].take(rows).to_pylist()
    TrainedOn.of(shards.table["source_digest"].take(rows).to_pylist()).write(place)
    words = ("--pretrained", str(place), "--name", "leak")
    with pytest.raises(UserError, match=rf"trained on 1 of the \d+ test videos: {name}.*--allow_"):
        finetune(shard_set, runs, *words)
    with pytest.raises(UserError, match="--allow_seen_test_videos"):  # before the first of several
        finetune(shard_set, runs, *words, "--seeds", "0,1")
    assert not (runs / "finetune/leak").exists()
    (result,) = finetune(shard_set, runs, *words, "--allow_seen_test_videos").runs
    tags = MlflowClient(result.run.uri).get_run(result.run.run_id).data.tags
    assert tags["dynamonet.protocol"].endswith("1 TEST VIDEOS WERE SEEN IN TRAINING")
    (place / "trained_on.npz").write_bytes(b"no numbers")
    with pytest.raises(UserError, match=r"trained_on.npz: damaged"):
        finetune(shard_set, runs, *words)


def test_copies_of_test_videos_are_found_by_the_fingerprints_of_stage_1(
    tmp_path: Path, cluster: None
) -> None:
    for number in range(8):
        for folder, frames in (("own", motion_video(number)), ("copies", motion_video(number)[5:])):
            if folder == "own" or number < 6:
                file = tmp_path / folder / f"class{number % 2}" / f"{number}.mp4"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encoded(frames, crf=18 if folder == "own" else 32))
    small = "--encode.short_side_px 64 --min_seconds 0.5 --test_share 0.5".split()
    for folder, words in (("own", ["--dataset", "folder"]), ("copies", [])):
        places = ["--source", str(tmp_path / folder), "--output", str(tmp_path / "shards" / folder)]
        shard([*places, *small, *words])
    own = ShardSet.open(str(tmp_path / "shards/own"))
    rows = own.rows(split=1, part="test").numbers()
    tested = set(own.table["source"].take(rows).to_pylist())
    copied = {name for name in tested if int(Path(name).stem) < 6}
    words = f"--shards {tmp_path / 'shards/copies'} --max_steps 1 --precision fp32 --name copied"
    with without_ray():
        pretraining.main([*words.split(), *TINY_MODEL, "--runs", str(tmp_path)])
    weights = model_at(tmp_path / "pretrain/copied")
    found = find_seen(weights, own, rows)
    assert not found.videos
    assert copied and set(found.copies) == {f"{name} ({name})" for name in copied}
    assert f"{len(copied)} of them in what looks like a copy" in str(found)
    with pytest.raises(
        UserError, match=rf"looks like a copy of {len(copied)} of the {len(tested)} test"
    ):
        finetune(tmp_path / "shards/own", tmp_path, "--pretrained", str(weights.folder))
    for file in (tmp_path / "shards/copies").rglob("fingerprints/*.parquet"):
        file.unlink()  # they may be deleted
    assert find_seen(weights, own, rows) == Seen()


def test_where_nothing_is_recorded_the_sets_that_are_named_are_looked_at(
    shard_set: Path, runs: Path, tmp_path: Path
) -> None:
    shards = ShardSet.open(str(shard_set))
    rows = shards.rows(split=1, part="test").numbers()
    model = DynamoNet.from_pretrained(runs / "pretrain/first/model")
    model.facts = facts(read_description(runs / "pretrain/first/model"))
    model.save_pretrained(tmp_path / "labelled")  # does not tell which split
    found = find_seen(model_at(tmp_path / "labelled"), shards, rows)
    assert not found.videos and "not known" in str(found)
    model.facts["run"] = {"id": "somebody's", "stage": "pretrain"}
    model.save_pretrained(tmp_path / "no sets")
    assert "not known" in str(find_seen(model_at(tmp_path / "no sets"), shards, rows))
    del model.facts["run"]
    model.save_pretrained(tmp_path / "nothing")
    assert "not known" in str(find_seen(model_at(tmp_path / "nothing"), shards, rows))


def test_a_model_trained_with_labels_is_not_called_pretrained_alone(
    shard_set: Path, runs: Path
) -> None:
    first = finetune(shard_set, runs, "--name", "labels").runs[0]
    second = finetune(shard_set, runs, "--name", "again", "--pretrained", str(first.folder))
    (result,) = second.runs
    assert result.protocol is not None and "trained with the labels of set" in result.protocol.start
    words = f"--max_steps 1 --precision fp32 --name probed --probe.shards {shard_set}".split()
    with without_ray():
        pretraining.main(["--shards", str(shard_set), *TINY_MODEL, *words, "--runs", str(runs)])
    third = finetune(shard_set, runs, "--pretrained", str(runs / "pretrain/probed"))
    assert third.runs[0].protocol is not None
    assert "probed with the labels of set" in third.runs[0].protocol.start


def test_each_look_at_a_test_part_is_counted_whatever_the_experiment(
    shard_set: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--pretrained", str(runs / "pretrain/first"), "--recipe", "ridge")
    finetune(shard_set, tmp_path, *own, "--name", "a")
    assert "measured for the first time" in capsys.readouterr().out
    finetune(shard_set, tmp_path, *own, "--name", "untested", "--test", "false", "--dropout", "0")
    printed = capsys.readouterr().out
    assert "not measured (--test false)" in printed and "val      top-1" in printed
    finetune(shard_set, tmp_path, *own, "--name", "b", "--seed", "1", "--experiment", "other")
    assert "the 2nd time on these videos, 1 settings so far" in capsys.readouterr().out
    last = finetune(shard_set, tmp_path, *own, "--name", "c", "--optimizer.lr", "0.1").runs[0]
    assert "the 3rd time on these videos, 2 settings so far" in capsys.readouterr().out
    finetune(shard_set, tmp_path, *own, "--name", "a")  # told again, not measured again
    assert "measured for the first time" in capsys.readouterr().out
    kept = json.loads((last.folder / "test/protocol.json").read_text())
    assert kept["times"] == {"nth": 3, "settings": 2}


def test_several_runs_stand_below_one_with_the_mean_of_their_accuracies(
    shard_set: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--pretrained", str(runs / "pretrain/first"), "--seeds", "0,1", "--name", "pair")
    found = finetune(shard_set, tmp_path, *own)
    printed = capsys.readouterr().out
    assert printed.count("minutes") == 2 and "mean of 2 runs, deviation" in printed
    assert "seed 0, 1" in printed and "weights " not in printed  # it is in the log
    assert "weights " in (tmp_path / "finetune/pair.log").read_text()
    client = MlflowClient(found.runs[0].run.uri)
    above = {client.get_run(each.run.run_id).data.tags["mlflow.parentRunId"] for each in found.runs}
    (parent,) = [client.get_run(each) for each in above]
    scores = [each.metrics["top1"] for each in found.runs]
    assert parent.data.metrics["test/top1"] == pytest.approx(np.mean(scores))
    summary = json.loads((tmp_path / "finetune/pair.summary.json").read_text())
    assert summary["protocol"] == parent.data.tags["dynamonet.protocol"]
    assert summary["top1_interval"][0] <= summary["top1_mean"] <= summary["top1_interval"][1]
    again = finetune(shard_set, tmp_path, *own)  # goes on below the same
    assert [each.run.run_id for each in again.runs] == [each.run.run_id for each in found.runs]
    assert len(client.search_runs(["0", parent.info.experiment_id])) == 3


def test_a_dry_run_says_what_would_be_done_and_keeps_nothing(
    shard_set: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--pretrained", str(runs / "pretrain/first"), "--max_steps", "40", "--dry_run")
    assert not finetune(shard_set, tmp_path, *own, "--seeds", "0", "1", "2").runs
    printed = capsys.readouterr().out
    for text in ("trains   full on ", "tests    ", "steps    40 steps of 4 clips, ", " GiB"):
        assert text in printed
    assert "a run, " in printed and " for 3 runs, beside starts and tests; nothing" in printed
    assert not [*tmp_path.iterdir()]
    finetune(shard_set, tmp_path, *own, "--recipe", "ridge")
    assert "one look at the training clips" in capsys.readouterr().out


def test_what_a_seed_decides_can_be_held_still(shard_set: Path) -> None:
    def task(seed: int, **hold: int) -> Finetuning:
        held = SeedSettings(**hold)
        settings = FinetuneSettings(pretrained="none", seed=seed, label_share=0.5, hold=held)
        return Finetuning(settings, str(shard_set), None)

    free = {tuple(task(seed).parts.train.tolist()) for seed in range(8)}
    held = {tuple(task(seed, labels=3).parts.train.tolist()) for seed in range(8)}
    assert len(free) > 1 and len(held) == 1
    own = task(5, weights=1, order=2).settings
    assert (own.labels_seed, own.weights_seed, own.order_seed) == (5, 1, 2)


def test_every_configuration_has_a_validation_part_where_the_set_has_groups_for_one(
    shard_set: Path,
) -> None:
    task = Finetuning(FinetuneSettings(pretrained="none"), str(shard_set), None)
    assert len(task.parts.validation) and not {*task.parts.validation} & {*task.parts.train}
    none = Finetuning(FinetuneSettings(pretrained="none", val_share=0), str(shard_set), None)
    assert not len(none.parts.validation) and not none.keeps_best()
