"""Recipes, parts and views of stage 3, in this process."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor

from dynamonet.command_line import load
from dynamonet.errors import SettingsError, UserError
from dynamonet.export import export
from dynamonet.frozen import ridge
from dynamonet.model.config import ModelConfig, TrunkConfig
from dynamonet.model.files import read_weights
from dynamonet.model.network import DynamoNet
from dynamonet.shards.order import Request
from dynamonet.shards.shard_set import ShardSet
from dynamonet.tracking.runs import TrackedRun
from dynamonet.training.checkpoint.store import best, newest
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.measuring import Measuring
from dynamonet.training.schedule import make_optimizer
from dynamonet.video.transforms import View
from finetune.evaluation.evaluator import ViewPlan
from finetune.pretrained.load import find_each, find_pretrained
from finetune.settings import FinetuneSettings
from finetune.train.objective import Finetuning
from finetune.train.several import single_runs
from finetune.train.splits import Splits, kept_apart, labelled_share
from tests.conftest import moving_frames, tracked, training_alone, write_video

SMALL = "--precision fp32 --clips.canvas_px 32 --loader.batch_size 4 --loader.processes 0"
BASE = (
    f"--recipe full --max_steps 3 --epochs 50 {SMALL} --test_clips 2 --checkpoint_every_steps 100 "
)
BASE += "--aux_weight 0"
TINY = ModelConfig(
    num_frames=8,
    frame_px=32,
    trunk=TrunkConfig(depth=10, width=4, stem_pool=False, temporal_strides=(1, 2, 2, 1)),
)


def settings(*words: str) -> FinetuneSettings:
    argv = [*BASE.split(), *words]
    return load(FinetuneSettings, argv, prog="")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, in a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    DynamoNet(TINY).save_pretrained(folder)
    return folder


class Tuned:
    """A finished fine-tuning."""

    def __init__(self, home: Path, run: TrackedRun) -> None:
        self.home = home
        self.metrics = MlflowClient(run.uri).get_run(run.run_id).data.metrics
        self.predictions = pq.read_table(home / "test/predictions.parquet").to_pylist()
        checkpoint = newest(home)
        assert checkpoint is not None
        self.model = DynamoNet.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def tune(shard_set: Path, model: Path, runs: Path) -> Callable[..., Tuned]:
    """Fine-tunes the model on the shards."""

    def tune(*words: str, task: type[Finetuning] = Finetuning) -> Tuned:
        home = runs / f"run-{len(list(runs.iterdir()))}"
        home.mkdir()
        own = settings(*words)
        run = tracked("finetune", home, own)
        training_alone(task(own, str(shard_set), str(model)), run, home, queue.Queue()).run()
        return Tuned(home, run)

    return tune


def same(a: dict[str, Tensor], b: dict[str, Tensor], part: str) -> bool:
    keys = [key for key in b if key.startswith(part)]
    assert keys
    return all(torch.equal(a[key], b[key]) for key in keys)


@pytest.mark.parametrize("recipe", ["ridge", "attentive"])
def test_a_probe_leaves_trunk_and_filters_as_they_were(
    tune: Callable[..., Tuned], model: Path, recipe: str, tmp_path: Path
) -> None:
    found = tune("--recipe", recipe)
    before, after = read_weights(model), found.model.state_dict()
    assert same(after, before, "trunk.") and same(after, before, "motion.")
    assert found.model.config.pooling == {"ridge": "mean_std"}.get(recipe, recipe)
    assert "train/skill" not in found.metrics  # frozen filters have nothing to learn
    assert 0 <= found.metrics["test/top1_low"] <= found.metrics["test/top1"] <= 1
    checkpoint = newest(found.home)
    assert checkpoint is not None  # it leaves as any other model
    assert export(checkpoint, tmp_path / "model.pt2").difference < 1e-3


@pytest.mark.parametrize("keeps", [True, False])
def test_two_networks_are_read_together_where_that_says_more(
    shard_set: Path,
    model: Path,
    tmp_path: Path,
    keeps: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trunk = TrunkConfig(depth=10, width=6, stem_pool=False)  # longer strides in time
    torch.manual_seed(1)
    DynamoNet(TINY.model_copy(update={"trunk": trunk, "num_frames": 16})).save_pretrained(
        tmp_path / "wider"
    )
    kept = [0, 1] if keeps else [0]
    monkeypatch.setattr(ridge, "worth_reading", lambda *_: kept)
    own = settings("--recipe", "ridge", "--pretrained", f"{model},{tmp_path / 'wider'}")
    home = tmp_path / "run"
    home.mkdir()
    run = tracked("finetune", home, own)
    task = Finetuning(own, str(shard_set), str(model), (str(tmp_path / "wider"),))
    training_alone(task, run, home, queue.Queue()).run()
    found = Tuned(home, run)
    assert len(found.model.beside) == len(kept) - 1
    assert found.metrics["ridge/networks"] == len(kept)
    clip = torch.randn(2, 3, 8, 32, 32)
    output = found.model(clip)
    assert output.heads is not None and output.heads.shape[1] == 2 * len(kept)
    if keeps:
        alone = found.model.networks[1].alone(clip, predict_frames=False)
        assert alone.heads is not None and torch.equal(output.heads[:, 2:], alone.heads)
        assert same(found.model.beside[0].state_dict(), read_weights(tmp_path / "wider"), "trunk.")
    checkpoint = newest(home)
    assert checkpoint is not None
    assert export(checkpoint, tmp_path / "model.pt2").difference < 1e-3
    again = training_alone(task, run, home, queue.Queue())  # as after a crash
    assert len(again.train_state.model.beside) == len(kept) - 1


def test_several_models_are_read_frozen_or_not_at_all(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="set recipe to ridge"):
        settings("--pretrained", "a,b")
    with pytest.raises(SettingsError, match="leave out none"):
        settings("--recipe", "ridge", "--pretrained", "motion,none")
    twice = settings("--recipe", "ridge", "--pretrained", f"{model},{model}")
    with pytest.raises(UserError, match="twice"):
        find_each(twice)
    odd = tmp_path / "a,b"
    DynamoNet(TINY).save_pretrained(odd)
    assert settings("--pretrained", str(odd)).starts == (str(odd),)
    (start,) = find_each(settings("--pretrained", str(odd)))
    assert start.folder == odd
    with pytest.raises(UserError, match="give one here"):
        find_pretrained(twice)


def test_full_fine_tuning_teaches_everything_the_lower_the_slower(
    tune: Callable[..., Tuned], model: Path, shard_set: Path
) -> None:
    words = "--layer_decay 0.5 --trunk_rate 0.4 --optimizer.lr 0.1".split()
    found = tune(
        *words, "--aux_weight", "1", "--class_weights", "balanced", "--augment.mixup", "0.5"
    )
    before, after = read_weights(model), found.model.state_dict()
    assert not same(after, before, "trunk.stem") and not same(after, before, "motion.")
    assert "train/skill" in found.metrics
    task = Finetuning(settings(*words), str(shard_set), str(model))
    net = task.build_model()
    optimizer = make_optimizer(task.rate_groups(net), task.settings.optimizer)
    rates = {id(p): group["peak"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(net.parameters()))
    stages = [net.trunk.stem, *net.trunk.stages]
    found_rates = [rates[id(next(iter(stage.parameters())))] for stage in stages]
    assert found_rates == pytest.approx([0.04 * 0.5**n for n in (4, 3, 2, 1, 0)])
    assert (
        net.classifier is not None
        and rates[id(net.classifier.get_parameter("heads.0.linear.weight"))] == 0.1
    )


class Falling(Finetuning):
    """Is best in the middle: a model that was changed by a known amount has a known score."""

    def evaluate(self, model: DynamoNet, measuring: Measuring) -> Any:
        found = super().evaluate(model, measuring)
        score = {1: 0.2, 2: 0.9, 3: 0.1}[len(SCORED) + 1]
        SCORED.append(score)
        found.metrics["val/top1"] = score
        return found


SCORED: list[float] = []


def test_the_best_step_by_validation_is_tested_and_nothing_else(
    tune: Callable[..., Tuned], model: Path, shard_set: Path
) -> None:
    words = ["--val_share", "0.3", "--validate_every_steps", "1", "--optimizer.lr", "0.1"]
    SCORED.clear()
    found = tune(*words, task=Falling)
    chosen = best(found.home, "val/top1")
    assert chosen is not None and chosen.name == "step-00000002"
    assert SCORED == [0.2, 0.9, 0.1] and found.metrics["val/videos"] >= 2
    # what was tested is that checkpoint: the same predictions again
    task = Finetuning(settings(*words), str(shard_set), str(model))
    alone = Measuring(Rank(0, 1, torch.device("cpu")), FP32, clips=4)
    again = task.test(DynamoNet.from_pretrained(chosen), alone)
    assert again is not None
    (found.home / "again.parquet").write_bytes(again.files["test/predictions.parquet"])
    rows = pq.read_table(found.home / "again.parquet").to_pylist()
    for row, other in zip(rows, found.predictions, strict=True):
        assert row["label_probability"] == pytest.approx(other["label_probability"], abs=1e-4)


class _Fp32:
    def autocast(self) -> Any:
        return torch.autocast("cpu", enabled=False)


FP32: Any = _Fp32()


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> ShardSet:
    """Videos of three classes and six scenes; a class of one scene alone; one wide video."""
    from data_prep.shard import main as shard

    folder = tmp_path_factory.mktemp("grouped")
    rows = ["path,label,split,group"]
    for number in range(14):
        label, scene = ("abc"[number % 3], number // 2) if number < 12 else ("lonely", 9)
        wide = 96 if number == 0 else 32
        write_video(folder / f"{number}.mp4", moving_frames(12, 32, wide, seed=number))
        rows.append(f"{number}.mp4,{label},{'test' if number in (0, 13) else 'train'},s{scene}")
    # a scene must not stand on both sides: videos 0 and 13 are alone in theirs
    rows[1] = rows[1].replace("s0", "s20")
    rows[14] = rows[14].replace("s9", "s21")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    words = f"--source {folder} --dataset folder --output {folder}/set --runs {folder}/runs"
    shard([*words.split(), "--encode.short_side_px", "32", "--min_seconds", "0.5"])
    return ShardSet.open(f"{folder}/set")


def test_validation_is_cut_by_whole_groups_and_leaves_every_class_its_training(
    grouped: ShardSet,
) -> None:
    rows = grouped.rows(split=1, part="train").numbers()
    stay, apart = kept_apart(grouped, rows, 0.3, 0)
    assert sorted([*stay, *apart]) == rows.tolist()
    groups = grouped.table["group"].to_pylist()
    assert not {groups[row] for row in stay} & {groups[row] for row in apart}
    labels = grouped.columns["label"]
    assert set(labels[stay]) == set(labels[rows])
    lonely = grouped.classes.index("lonely")
    assert lonely not in labels[apart] and len(set(labels[apart])) == 3
    assert [row.tolist() for row in kept_apart(grouped, rows, 0.3, 0)] == [
        stay.tolist(),
        apart.tolist(),
    ]
    with pytest.raises(UserError, match=r"val_share = 0.9 cannot be cut.*(would lose all|no pair)"):
        kept_apart(grouped, np.array([row for row in rows if labels[row] == lonely]), 0.9, 0)


def test_a_smaller_share_of_labels_lies_in_a_larger_one(grouped: ShardSet) -> None:
    rows = grouped.rows(split=1, part="train").numbers()
    kept = [set(labelled_share(grouped, rows, share, 0).tolist()) for share in (0.1, 0.5, 1.0)]
    assert kept[0] < kept[1] < kept[2] == set(rows.tolist())
    assert len(kept[0]) == 4  # one for each class
    others = [set(labelled_share(grouped, rows, 0.1, seed).tolist()) for seed in range(1, 9)]
    assert any(other != kept[0] for other in others)


def test_three_crops_see_both_ends_of_a_wide_video(grouped: ShardSet, model: Path) -> None:
    own = settings("--test_crops", "3", "--test_clips", "1")
    task = Finetuning(own, grouped.folder.path, str(model))
    parts = Splits.of(grouped, own)
    (wide,) = [row for row in parts.test if grouped.columns["width"][row] > 32]
    requests = ViewPlan(1, 3).requests(int(wide))
    assert [request.offset for request in requests] == [0, 0.5, 1]
    reader = task.reader(parts.test)
    left, middle, right = (reader[request].pixels for request in requests)  # type: ignore[union-attr]
    # the picture drifts two pixels a frame to the right: the middle square holds what the left held
    assert not torch.equal(left, middle) and not torch.equal(middle, right)
    assert torch.equal(reader[Request(int(wide))].pixels, middle)  # type: ignore[union-attr]


def test_classes_that_a_mirror_changes_are_not_mirrored(
    grouped: ShardSet, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Finetuning(
        settings("--augment.no_flip", "a", "--clips.flip", "true"), grouped.folder.path, str(model)
    )
    reader = task.training_data()
    flips: dict[str, list[bool]] = {}
    drawn = View.scaled
    seen: list[bool] = []
    monkeypatch.setattr(
        View, "scaled", lambda view, *more: (seen.append(view.flip), drawn(view, *more))[1]
    )
    for row in reader.rows.numbers().tolist():
        name = grouped.classes[grouped.columns["label"][row]]
        seen.clear()
        reader.__getitems__([Request(row, seed=seed) for seed in range(12)])
        flips.setdefault(name, []).extend(seen)
    assert not any(flips["a"]) and 0 < sum(flips["b"]) < len(flips["b"])
    with pytest.raises(UserError, match=r"no class 'lonly'; the closest of its 4 is 'lonely'"):
        Finetuning(settings("--augment.no_flip", "lonly"), grouped.folder.path, str(model)).check()


def test_rare_classes_weigh_more(grouped: ShardSet, model: Path) -> None:
    task = Finetuning(settings("--class_weights", "balanced"), grouped.folder.path, str(model))
    weights, labels = task.class_weights, grouped.columns["label"][task.parts.train]
    assert weights is not None
    assert float(weights[labels].mean()) == pytest.approx(1)
    counts = np.bincount(labels)
    assert np.allclose(weights.numpy() * counts, weights[0].item() * counts[0])


def test_splits_and_seeds_make_one_run_each() -> None:
    found = single_runs(settings("--split", "all", "--seeds", "4,5", "--name", "x"), 3)
    assert [(run.split, run.seed) for run in found] == [(s, r) for s in (1, 2, 3) for r in (4, 5)]
    assert found[0].name == "x-split1-seed4" and all(run.seeds is None for run in found)
    (only,) = single_runs(settings("--name", "x"), 3)
    assert only == settings("--name", "x")


def test_settings_of_stage_3_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SettingsError, match="recipe: ridge reads the features of a pretrained"):
        settings("--recipe", "ridge", "--pretrained", "none")
    with pytest.raises(SettingsError, match=r"split.*greater than or equal to 1"):
        settings("--split", "0")
    with pytest.raises(SettingsError, match="test_crops: expected 1 or 3"):
        settings("--test_crops", "2")
