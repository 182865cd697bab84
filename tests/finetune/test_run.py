"""Stage 3 as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from demo.rendered_videos import render_scenes
from dynamonet.errors import UserError
from dynamonet.lineage import __main__ as lineage
from dynamonet.model.config import ModelConfig, TrunkConfig
from dynamonet.model.network import DynamoNet
from dynamonet.model.prediction import pair_frames, squared_errors
from dynamonet.shards.settings import ClipSettings
from dynamonet.shards.shard_set import ShardSet
from dynamonet.training.checkpoint.store import best, read_manifest
from dynamonet.training.start import transfer
from dynamonet.video.transforms import normalise
from finetune import run
from finetune.pretrained.load import as_learnt, find_pretrained
from finetune.settings import FinetuneSettings
from finetune.train.experiment import Result
from finetune.train.objective import Finetuning
from pretrain import run as pretraining
from pretrain.settings import PretrainSettings
from tests.conftest import TINY_MODEL, without_ray

SHORT = "--recipe full --max_steps 3 --epochs 50 --test_clips 2 --precision fp32".split()
CLIPS = "--clips.canvas_px 32 --loader.batch_size 4 --loader.processes 0 --clips.flip false".split()


def finetune(shards: Path, *words: str) -> dict[str, float]:
    base = ["--dataset", "folder", "--shards", str(shards), *CLIPS, *SHORT]
    return run.main([*base, *words]).metrics


@pytest.fixture(scope="module")
def pretrained(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results folder with one finished pretraining."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["--max_steps", "2", "--holdout_share", "0.3", "--precision", "fp32"]
    with without_ray():
        pretraining.main(["--shards", str(shard_set), *TINY_MODEL, *words, "--runs", str(runs)])
    return runs


def test_the_newest_pretrained_model_is_taken_measured_and_linked(
    shard_set: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with without_ray():
        scores = finetune(shard_set, "--runs", str(pretrained), "--name", "first")
    assert set(scores) >= {"top1", "class_mean", "videos"} and "top5" not in scores
    printed = capsys.readouterr().out
    assert "100% of the weights" in printed and "8 frames x 2 clips x 3 crops" in printed
    folder = pretrained / "finetune/first"
    state = json.loads((folder / "run.json").read_text())
    client = MlflowClient(state["mlflow"]["uri"])
    found = client.get_run(state["mlflow"]["run_id"])
    (made,) = (pretrained / "pretrain").iterdir()
    parent = json.loads((made / "run.json").read_text())["mlflow"]["run_id"]
    card = json.loads((shard_set / "card.json").read_text())
    assert found.data.tags["dynamonet.parents"] == f"{parent},{card['run']['id']}"
    assert found.data.metrics["test/top1"] == scores["top1"]
    assert {"train/entropy", "train/accuracy", "train/skill"} <= found.data.metrics.keys()
    names = {item.path for item in client.list_artifacts(found.info.run_id, "test")}
    tables = {f"test/{name}" for name in ("per_class.csv", "confused.csv", "predictions.parquet")}
    pictures = {
        f"test/{n}.png" for n in "confusion calibration motion_field motion_numbers".split()
    }
    assert names - {"test/confused.png"} == tables | pictures
    table = client.download_artifacts(found.info.run_id, "test/predictions.parquet")
    rows = pq.read_table(table).to_pylist()
    assert len(rows) == scores["videos"] and {row["views"] for row in rows} == {2 * 3}
    assert np.mean([row["correct"] for row in rows]) == pytest.approx(scores["top1"])
    assert DynamoNet.from_pretrained(folder / "model").config.num_classes == 2
    about = json.loads((folder / "model/model.json").read_text())
    assert about["classes"] == ["left", "right"]
    made = {"short_side_px": 32, "max_fps": 30.0, "crop_letterbox": False}
    assert about["frames"] == made  # as the shards were
    traced = lineage.main([str(folder / "model")])
    before, shards = traced.parents
    assert (before.id, shards.id) == (parent, card["run"]["id"]) and before.parents == [shards]
    assert not [*traced.changed, *before.changed, *shards.changed]


def test_the_auxiliary_loss_is_the_one_of_the_pretraining(shard_set: Path, tmp_path: Path) -> None:
    model = DynamoNet(ModelConfig(num_frames=8, frame_px=32))
    for number, (told, expected) in enumerate((({"loss": "l1"}, "l1"), ({}, "mse"))):
        model.facts = told
        place = tmp_path / str(number)
        model.save_pretrained(place)
        task = Finetuning(FinetuneSettings(), str(shard_set), str(place))
        assert task.auxiliary_loss == expected
    assert Finetuning(FinetuneSettings(), str(shard_set), None).auxiliary_loss == "mse"


def test_the_network_of_the_package_is_found_by_its_name() -> None:
    found = find_pretrained(FinetuneSettings(pretrained="motion"))
    assert found is not None and found.origin is not None and found.origin.stage == "pretrain"
    text = (found.folder / "model.json").read_text()
    assert "://" not in text and str(Path.home()) not in text  # of no place
    model = DynamoNet.from_pretrained("motion")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    fits = PretrainSettings.from_config("motion").model
    assert model.config.trunk == fits.trunk  # what docs and configurations say fits it
    before = DynamoNet.from_pretrained("motion@1")
    assert before.config.trunk == PretrainSettings.from_config("tiny").model.trunk
    scenes = normalise(render_scenes(8, seed=10**6, num_frames=17).transpose(1, 2) / 255)
    pairs = pair_frames(scenes, model(scenes[:, :, :16]).predicted, (2,), "within_clip")
    assert squared_errors(pairs[0], 5).total.skill > 0.3


def test_spacing_and_size_travel_with_the_weights_unless_they_are_set(pretrained: Path) -> None:
    found = find_pretrained(FinetuneSettings(pretrained="motion"))
    assert found is not None
    taken = as_learnt(ClipSettings(flip=False), found.folder)
    assert (taken.stride_seconds, taken.canvas_px, taken.flip) == (1 / 12, 64, False)
    assert as_learnt(taken, found.folder) == taken
    own = as_learnt(ClipSettings(stride_frames=2), found.folder)
    assert (own.stride_seconds, own.stride_frames, own.canvas_px) == (None, 2, 64)
    own = ClipSettings(stride_seconds=0.2, canvas_px=128)
    assert as_learnt(own, found.folder) == own
    (made,) = (pretrained / "pretrain").iterdir()  # set in frames, of videos of 12 a second
    assert as_learnt(ClipSettings(), made / "model").stride_seconds == pytest.approx(1 / 12)
    task = Finetuning(FinetuneSettings(), "", str(made / "model"))
    assert {rate for _, rate in task.rate_groups(DynamoNet(task.architecture))} == {1.0}


def test_a_model_is_found_by_folder_and_by_run_id(pretrained: Path) -> None:
    (made,) = (pretrained / "pretrain").iterdir()
    run_id = json.loads((made / "run.json").read_text())["mlflow"]["run_id"]
    weights = (made / "model/model.safetensors").read_bytes()
    for place in ("newest", str(made / "model"), str(made), str(made / "step-00000002"), run_id):
        settings = FinetuneSettings(runs=str(pretrained), pretrained=place)
        found = find_pretrained(settings)
        assert found is not None and found.run_id == run_id
        assert (found.folder / "model.safetensors").read_bytes() == weights


def test_from_scratch_without_auxiliary_loss_and_without_dmr(
    shard_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [word for word in TINY_MODEL if not word.startswith(("--clips", "--loader"))]
    words = "--pretrained none --aux_weight 0 --reads features --label_share 0.5".split()
    tiny = "--model.num_frames 8 --model.frame_px 32 --model.trunk.depth 10 --model.trunk.width 4"
    assert model
    with without_ray():
        scores = finetune(shard_set, *words, *tiny.split())
    assert 0 <= scores["top1"] <= 1
    assert "from scratch" in capsys.readouterr().out
    (folder,) = Path("runs/finetune").iterdir()
    saved = DynamoNet.from_pretrained(folder / "model")
    assert saved.classifier is not None and saved.config.reads == "features"


def test_what_takes_seconds_is_tried_first_and_validation_keeps_one(
    shard_set: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def auto(name: str, *words: str) -> tuple[Result, list[Path], str]:
        base = ["--shards", str(shard_set), *CLIPS, *SHORT, "--runs", str(pretrained)]
        with without_ray():
            (kept,) = run.main([*base, "--recipe", "auto", "--name", name, *words]).runs
        return kept, sorted(kept.folder.parent.glob(f"{name}-*")), capsys.readouterr().out

    kept, folders, printed = auto("validated", "--val_share", "0.4")
    assert [folder.name.split("-")[1] for folder in folders] == ["full", "ridge"]
    found = {
        recipe: best(f, "val/top1") for recipe, f in zip(("full", "ridge"), folders, strict=True)
    }
    scores = {
        recipe: (each["val/top1"], each["val/log_likelihood"])
        for recipe, folder in found.items()
        if folder and (each := read_manifest(folder)["metrics"])
    }
    assert kept.settings.recipe == max(scores, key=lambda recipe: scores[recipe])
    line = next(line for line in printed.splitlines() if line.startswith("kept"))
    assert "validation videos" in line and f"{scores['ridge'][0]:.1%}" in line
    assert line.removeprefix("kept     ") in (kept.folder / "report.html").read_text()
    assert printed.index(str(folders[1])) < printed.index(str(folders[0]))  # the short one first

    kept, folders, printed = auto("tried", "--val_share", "0")  # a part is held out to choose by
    assert "then done with all labels" in printed
    trials = [kept.folder.with_name(f"tried-trial-{recipe}") for recipe in ("full", "ridge")]
    assert folders == sorted([kept.folder, *trials])
    told = json.loads((kept.folder / "test/protocol.json").read_text())
    shards = ShardSet.open(str(shard_set))
    names = shards.table["source"].take(shards.rows(split=1, part="train").numbers())
    assert told["train_videos"] == len(set(names.to_pylist()))

    kept, folders, printed = auto(
        "few", "--label_share", "0.01", "--val_share", "0"
    )  # a video a class
    assert "kept     ridge: nothing tells which is better" in printed and [kept.folder] == folders


def test_users_mistakes_name_what_to_do(shard_set: Path, tmp_path: Path, pretrained: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)no shards of hmdb51.*--dataset hmdb51 --output"):
        run.main(["--dataset", "hmdb51"])
    with pytest.raises(UserError, match=r"(?s)no finished pretraining run.*pretrain/run.py"):
        finetune(shard_set)
    with pytest.raises(UserError, match="no model here"):
        finetune(shard_set, "--pretrained", str(tmp_path))
    with pytest.raises(UserError, match="has no artifact 'model'"):
        finetune(shard_set, "--pretrained", "0" * 32)
    with pytest.raises(UserError, match=r"no split 3; this set has splits 1\.\.1"):
        finetune(shard_set, "--pretrained", "none", "--split", "3", *TINY_MODEL[:14])
    wide = "--model.num_frames 8 --model.frame_px 32 --model.trunk.depth 10 --model.trunk.width 64"
    with pytest.raises(UserError, match=r"do not fit this model: 0%.*min_loaded_share"):
        finetune(shard_set, "--runs", str(pretrained), *wide.split())


def test_unlabelled_shards_are_refused(video_folder: Path, tmp_path: Path, cluster: None) -> None:
    from data_prep.shard import main as shard

    words = ["--source", str(video_folder), "--output", str(tmp_path / "set")]
    shard([*words, "--encode.short_side_px", "32", "--min_seconds", "0.5"])
    with pytest.raises(UserError, match="these shards have no labels"):
        finetune(tmp_path / "set", "--pretrained", "none")


def test_a_transfer_reports_what_fitted_by_part() -> None:
    def tiny(**trunk: object) -> DynamoNet:
        config = TrunkConfig(depth=10, **{"width": 4, "stem_pool": False, **trunk})  # type: ignore[arg-type]
        return DynamoNet(ModelConfig(num_frames=8, frame_px=32, trunk=config))

    source = tiny()
    weights = {**source.state_dict(), "trunk.extra": torch.zeros(3), "classifier.x": torch.zeros(1)}
    del weights["trunk.stem.conv.weight"]
    weights["trunk.stem.norm.weight"] = torch.zeros(9)
    target = tiny()
    report = transfer(target, weights, 0.5)
    assert report.missing == ["trunk.stem.conv.weight"]
    assert report.misshapen == ["trunk.stem.norm.weight"]
    assert report.unexpected == ["trunk.extra"]
    assert 0.9 < report.share < 1 and "1 missing, e.g. trunk.stem.conv.weight" in str(report)
    twin = {k: v for k, v in target.state_dict().items() if "stem" not in k}
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in twin.items())
    with pytest.raises(UserError, match="do not fit this model"):
        transfer(tiny(width=16), source.state_dict(), 0.5)
