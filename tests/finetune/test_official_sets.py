"""The official sets of full shape, through the very commands of the README."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.shard import main as shard
from dynamonet.shards.shard_set import ShardSet
from finetune.run import main as finetune
from tests.conftest import ROOT, TINY_MODEL, without_ray
from tests.finetune import official

FEW_STEPS = "--pretrained none --max_steps 2 --test_clips 1 --precision fp32 --val_share 0"


def commands(dataset: str) -> list[list[str]]:
    """Returns the README's commands about a set."""
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("    python ")]
    return [words[1:] for words in found if f"--dataset {dataset}" in " ".join(words)]


@pytest.mark.parametrize(
    ("dataset", "make", "classes", "videos", "splits", "tested"),
    [
        ("hmdb51", official.make_hmdb51, official.HMDB51, 4 * 51, 3, [50, 51, 51]),
        ("ucf101", official.make_ucf101, official.UCF101, 3 * 101, 3, [100]),
        ("kinetics400", official.make_kinetics400, official.KINETICS400, 2 * 400, 1, [400]),
    ],
)
def test_a_set_of_full_shape_is_prepared_trained_on_and_tested(
    dataset: str,
    make: Callable[[Path], None],
    classes: list[str],
    videos: int,
    splits: int,
    tested: list[int],
    cluster: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path)
    (script, *words), (second, *train) = commands(dataset)
    assert (script, second) == ("data_prep/shard.py", "finetune/run.py")
    shard([*words, *"--encode.short_side_px 32 --min_seconds 0.5".split()])
    printed = capsys.readouterr().out.replace("\n", "")
    assert re.search(r"listed, but not found: \S.*found, but not listed: \S*not_in_the_l", printed)
    shards = ShardSet.open(str(tmp_path / "data/shards" / dataset))
    assert sorted(shards.classes) == sorted(classes) and shards.num_splits == splits
    counts = shards.card.counts
    assert (counts.videos_taken, counts.listed_but_missing) == (videos - 1, 1)
    with without_ray():
        found = finetune([*train, *FEW_STEPS.split(), *TINY_MODEL])
    protocols = [run.protocol for run in found.runs if run.protocol]
    assert [each.test.videos for each in protocols] == tested
    assert {each.test.part for each in protocols} == {"val" if dataset == "kinetics400" else "test"}
