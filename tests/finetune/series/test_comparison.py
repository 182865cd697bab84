"""A comparison of networks from its command to its files; it goes on where it was stopped."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from dynamonet.errors import UserError
from dynamonet.model.network import DynamoNet
from dynamonet.shards.shard_set import ShardSet
from dynamonet.tracking.store import tracking_uri
from finetune import compare, compare_backbones
from finetune import run as finetuning
from finetune.evaluation.leakage import Seen
from finetune.series import comparison, kept_features
from finetune.settings import FinetuneSettings
from finetune.train.experiment import RunResult, Start
from finetune.train.objective import Finetuning
from tests.conftest import without_ray
from tests.finetune.pretrained.test_convert import foundation, resnet_state
from tests.finetune.train.test_recipes import SMALL, TINY

WORDS = f"--max_steps 1 --test_clips 2 {SMALL} --seeds 0 1 --name table".split()


@pytest.fixture
def words(shard_set: Path, tmp_path: Path) -> list[str]:
    DynamoNet(TINY).save_pretrained(tmp_path / "own")
    foundation("videomae", tmp_path / "encoder")
    torch.save(resnet_state(4, (1, 1, 1, 1), 3), tmp_path / "hara.pth")
    places = ["--shards", str(shard_set), "--runs", str(tmp_path)]
    return [*places, *WORDS]


def test_networks_are_compared_with_probes_and_in_full(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [str(tmp_path / name) for name in ("own", "encoder", "hara.pth")]
    words += ["--backbones", "none", *names, "--pixel_scale", "hara_2020"]
    with without_ray():
        rows = compare_backbones.main([*words, "--recipes", "ridge"])
    assert [(row.title, row.recipe) for row in rows] == [
        (name, "ridge") for name in ("own", "encoder", "hara")
    ]
    looked = []
    look = kept_features._look
    monkeypatch.setattr(
        kept_features, "_look", lambda *words: looked.append(words[3]) or look(*words)
    )
    capsys.readouterr()
    with without_ray():
        rows = compare_backbones.main(words)
    printed = capsys.readouterr().out
    assert looked and all(looked), "feature maps were not kept before; means were"
    assert [(row.title, row.recipe) for row in rows] == [
        ("from scratch", "full"),
        *(("own", recipe) for recipe in ("ridge", "attentive", "full")),
        *(("encoder", recipe) for recipe in ("ridge", "attentive")),
        *(("hara", recipe) for recipe in ("ridge", "attentive", "full")),
    ]
    assert all(len(row.outcomes.right) == 2 for row in rows)
    assert "best     " in printed and "--recipe" in printed and "Points behind" in printed
    folder = tmp_path / "finetune"
    table = list(csv.DictReader((folder / "table.csv").open(encoding="utf-8")))
    assert [(each["network"], each["recipe"]) for each in table] == [
        (row.title, row.recipe) for row in rows
    ]
    assert (folder / "table.png").is_file()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("f*/**/*.parquet")}
    looked.clear()
    with without_ray():
        again = compare_backbones.main(words)
    assert not looked, "kept features are read"
    assert {file: file.stat().st_mtime_ns for file in before} == before
    for one, other in zip(rows, again, strict=True):
        np.testing.assert_array_equal(one.outcomes.right, other.outcomes.right)
    sides = [
        [str(folder / f"table-own-{r}-split1-seed{s}") for s in (0, 1)] for r in ("ridge", "full")
    ]
    compare.main(["--a", *sides[0], "--b", *sides[1]])
    client = MlflowClient(tracking_uri(str(tmp_path)))
    (experiment,) = [each for each in client.search_experiments() if each.name == "dynamonet"]
    found = client.search_runs([experiment.experiment_id], max_results=100)
    (above,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    tried = [run.info.run_name for run in found if "-lr" in str(run.info.run_name)]
    assert sorted(str(name).partition("seed0-")[2] for name in tried) == [
        *["lr0.001-trunk0.0001"] * 2,  # own, hara
        *["lr0.001-trunk0.001"] * 3,
        "lr0.003-trunk0.003",  # from scratch
    ]
    assert len(found) == 1 + len(tried) + 2 * len(rows)
    assert above.data.metrics["test/top1 own ridge"] == rows[1].outcomes.mean


@pytest.mark.parametrize("better", [0, 1])
def test_a_full_fine_tuning_has_the_rates_of_the_better_try(
    shard_set: Path, tmp_path: Path, better: int
) -> None:
    settings = FinetuneSettings(
        shards=str(shard_set), runs=str(tmp_path), name="x", pretrained="none", val_share=0
    )
    start = Start(Finetuning(settings, str(shard_set), None), [], Seen())
    tries = [each.task for each in comparison._tries(start, ShardSet.open(str(shard_set)))]
    held = [set(task.parts.validation.tolist()) for task in tries]
    trained = set(start.task.parts.train.tolist())
    assert held[0] == held[1] and held[0] < trained, "only training videos choose"
    tried = [
        RunResult(task.settings, tmp_path, None, {"top1": 0.5, "log_likelihood": -good}, None)  # type: ignore[arg-type]
        for task, good in zip(tries, (better, 1 - better), strict=True)
    ]
    chosen = comparison._at_best_rate(start, tried).task.settings
    assert (chosen.optimizer.lr, chosen.trunk_rate) == ((0.001, 0.003)[better], 1.0)
    assert chosen.name == "x" and chosen.test


def test_with_a_rate_given_none_is_tried(words: list[str], tmp_path: Path) -> None:
    words += "--backbones none --recipes full --trunk_rate 0.5 --seeds 0".split()
    with without_ray():
        (row,) = compare_backbones.main(words)
    assert row.recipe == "full" and not list(tmp_path.glob("finetune/*-lr*"))


def test_features_that_were_cut_short_are_completed(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words += ["--backbones", str(tmp_path / "own"), "--recipes", "ridge", "--batch_clips", "4"]
    look, calls = kept_features._look, list[int]()

    def stopped(*given: object) -> object:
        calls.append(len(given[1]))  # type: ignore[arg-type]
        if len(calls) == 2:
            raise KeyboardInterrupt
        return look(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(kept_features, "_look", stopped)
    with pytest.raises(KeyboardInterrupt), without_ray():
        compare_backbones.main(words)
    with without_ray():
        rows = compare_backbones.main(words)
    assert sum(calls) == 4 + 4 + 68 and len(rows) == 1, "of 12 videos, two clips, three squares"


def test_ridge_of_kept_features_says_what_a_run_of_it_says(shard_set: Path, tmp_path: Path) -> None:
    DynamoNet(TINY).save_pretrained(tmp_path / "own")
    words = [
        "--shards",
        str(shard_set),
        "--runs",
        str(tmp_path),
        *SMALL.split(),
        "--test_clips",
        "2",
    ]
    many = [
        "--name",
        "table",
        "--backbones",
        str(tmp_path / "own"),
        "--recipes",
        "ridge",
        "--seeds",
        "0",
    ]
    one = [
        "--pretrained",
        str(tmp_path / "own"),
        "--recipe",
        "ridge",
        "--name",
        "run",
        "--val_share",
        "0",
    ]
    with without_ray():
        (row,) = compare_backbones.main([*words, *many])
        (run,) = finetuning.main([*words, *one]).runs
    said = [
        pq.read_table(folder / "test/predictions.parquet").to_pylist()
        for folder in (run.folder, tmp_path / "finetune/table-own-ridge")
    ]
    assert row.outcomes.mean == run.metrics["top1"]
    for ours, theirs in zip(*said, strict=True):
        assert ours["label_probability"] == pytest.approx(theirs["label_probability"], abs=1e-5)
        assert ours["source"] == theirs["source"] and ours["views"] == theirs["views"] == 2 * 3


def test_what_cannot_be_compared_is_refused(words: list[str], tmp_path: Path) -> None:
    DynamoNet(TINY).save_pretrained(tmp_path / "motion")
    for more, said in (
        (["--pretrained", "motion"], "--pretrained: of one run; expected --backbones"),
        (["--recipe", "full"], "--recipe: of one run; expected --recipes"),
        (["--test", "false"], "what is compared are accuracies"),
        (["--backbones", "none", "--recipes", "ridge"], "nothing to compare"),
        (["--backbones", str(tmp_path / "hara.pth")], "give --pixel_scale hara_2017"),
        (["--backbones", "motion", "motion"], "--backbones: expected each once"),
        (["--backbones", "motion", str(tmp_path / "motion")], "one name in the table, motion"),
    ):
        with pytest.raises(UserError, match=said):
            compare_backbones.main([*words, *more])
