"""The learning benchmark at a tiny size, and that it never sees a test clip."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.learning import arms, rows
from benchmarks.learning.arms import (
    ARMS,
    OWN_12,
    PRETEXTS,
    READ_SCALES,
    SCALE,
    SCRATCH,
    Row,
    Start,
    plan,
)
from benchmarks.learning.page import figures, render, summary
from benchmarks.learning.plots import draw_labels, draw_scale
from benchmarks.learning.readings import READINGS, readings
from benchmarks.learning.results import Results
from benchmarks.learning.rows import Ledger, Line, Runner
from benchmarks.learning.sets import LABELLED, UNLABELLED, make_sets
from benchmarks.learning.settings import pretrain_settings
from dynamonet.errors import UserError
from dynamonet.shards.shard_set import ShardSet
from dynamonet.tracking.seen import TrainedOn
from tests.conftest import moving_frames, write_video


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> dict[str, str]:
    """Sets like the real ones: two classes, nine groups in three folds."""
    videos = tmp_path_factory.mktemp("videos")
    for place, name in enumerate((*LABELLED, UNLABELLED)):
        listed = []
        for number in range(18 if name in LABELLED else 3):
            frames = moving_frames(30, 48, 64, seed=100 * place + number)
            frames = frames if number % 2 else np.ascontiguousarray(frames[::-1])
            group = number // 2
            write_video(videos / name / f"{number}.mp4", frames)
            listed.append((f"{number}.mp4", f"class{number % 2}", f"g{group}", group % 3))
        if name in LABELLED:
            with (videos / name / "split.csv").open("w", newline="") as file:
                csv.writer(file).writerows([("path", "class", "group", "fold"), *listed])
    return make_sets(tmp_path_factory.mktemp("home"), videos)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of each training, in this process."""
    monkeypatch.setattr(arms, "STEPS_PER_MINUTE", 0.25)
    monkeypatch.setattr(arms, "STEPS", dict.fromkeys(LABELLED, 2))
    monkeypatch.setattr(rows, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))


def test_no_clip_is_tested_that_was_pretrained_on(shards: dict[str, str]) -> None:
    for row in (row for row in plan() if row.seed == 0 and row.share == 1):
        start = row.start
        if start is None or start.held_out:
            continue
        settings = pretrain_settings(start, shards)
        task = PRETEXTS[start.pretext].task(settings, settings.shards, None, None)
        data = ShardSet.open(shards[row.set])
        digests = {
            part: data.table["source_digest"].take(
                data.rows(split=row.fold + 1, part=part).numbers()
            )
            for part in ("test", "train")
        }
        learnt = task.trained_on()
        assert not learnt.has(digests["test"].to_pylist()).any()
        assert learnt.has(digests["train"].to_pylist()).all() == arms.BY_NAME[row.arm].own_domain


def test_a_network_that_has_seen_a_test_clip_is_not_measured(
    shards: dict[str, str], tiny: None, tmp_path: Path
) -> None:
    runner, row = Runner(tmp_path, shards), Row(OWN_12, "weizmann", 0)
    start = row.start
    assert start is not None
    runner.lines_of(start)
    tested = ShardSet.open(shards["weizmann"]).table["source_digest"].to_pylist()
    TrainedOn.of(tested).write(runner.model(start))
    with pytest.raises(RuntimeError, match="has seen clips"):
        runner.lines_of(row)


def test_it_runs_whole_and_trains_no_row_again(
    shards: dict[str, str], tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (SCRATCH, OWN_12, "motion", "VICReg, 12 minutes", "VideoMAE, 12 minutes")
    wanted = [
        row
        for row in plan()
        if row.set == "weizmann" and row.seed == 0 and row.longer == 1 and row.share in (0.5, 1)
        if row.arm in names
    ]
    few = replace(SCALE[0], clips=24, videos=None)
    monkeypatch.setitem(arms.BY_NAME, few.name, few)
    wanted += [Row(few.name, "weizmann", fold) for fold in range(3)]
    wanted += [Row(SCRATCH, "weizmann", fold, seed=1) for fold in range(3)]
    for seed in (0, 1):  # which draw other groups
        wanted += [Row("3 minutes, own", "weizmann", f, seed, part="val") for f in range(3)]
    ledger, runner, told = Ledger.open(tmp_path / "rows.jsonl"), Runner(tmp_path, shards), []
    runner.run(wanted[:4], ledger, told.append)  # cut off, and the page can be made
    assert "4 of" in render(ledger) and "## Frozen" not in render(ledger)
    runner.run(wanted, ledger, told.append)
    assert len(told) == len(wanted) + len({row.start for row in wanted} - {None})
    read = [r for r in readings() if (r.set, r.seed, r.num_frames) == ("weizmann", 0, 8)]
    long = (OWN_12, *(arm.name for arm in READ_SCALES))
    read = [r for r in read if r.arm not in long and r.share in (0.5, 1)]
    runner.run(read, ledger, told.append)

    page = render(ledger)
    for heading in (
        "Does pretraining pay?",
        "By how much?",
        "Frozen",
        "With fewer labels",
        "How much pretraining?",
        "Ways to pretrain",
        "The pretrainings",
    ):
        assert f"## {heading}" in page
    assert summary(ledger).count("\n") == 6  # a head of two lines, five arms
    for way in READINGS:
        assert f"8 x 48 px | {way} |" in page
    assert "| `motion` and own, together | 8 x 48 px | two heads |" in page
    draw_labels(ledger, tmp_path / "labels.png")
    draw_scale(ledger, tmp_path / "scale.png")
    found = {figure.name for figure in figures(ledger) if "frozen" not in figure.name}
    assert {f"own_12_ahead_of_{o}_weizmann" for o in ("scratch", "VICReg", "VideoMAE")} == found
    scratch = Results(ledger).of(SCRATCH, "weizmann")
    assert scratch is not None and scratch.right.shape == (2, 18)
    assert Results(ledger).of(few.name, "weizmann") is not None

    again, before = Ledger.open(ledger.path), ledger.path.read_text()
    runner.run(wanted, again, lambda line: pytest.fail(f"trained again: {line['key']}"))
    assert again.path.read_text() == before


def test_rows_of_other_settings_are_forgotten_with_what_started_from_them(
    shards: dict[str, str], tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, row = Ledger.open(tmp_path / "rows.jsonl"), Row(OWN_12, "weizmann", 0)
    scratch = replace(row, arm=SCRATCH)
    Runner(tmp_path, shards).run([row, scratch], ledger, lambda line: None)
    assert ledger.forget([row, scratch], shards) == 0
    monkeypatch.setitem(PRETEXTS, "own", replace(PRETEXTS["own"], lr=0.002))
    assert ledger.forget([row, scratch], shards) == 2
    left: dict[str, Line] = Ledger.open(ledger.path).lines
    assert scratch.key in left and row.key not in left


def test_a_pretraining_that_was_cut_off_goes_on(
    shards: dict[str, str], tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Start("own", 5, (UNLABELLED, "jhmdb"), 1, 0, 0.0)
    whole = Runner(tmp_path / "whole", shards)
    whole.lines_of(start)
    cut = Runner(tmp_path / "cut", shards)
    monkeypatch.setattr(rows, "SAVED_EVERY_STEPS", 2)
    step, taken = rows.Trainer._end_step, []

    def killed(self: rows.Trainer, done: int, request: object) -> bool:
        taken.append(done)
        if taken == [1, 2, 3]:
            self.store.wait()
            raise KeyboardInterrupt
        return step(self, done, request)  # type: ignore[arg-type]

    monkeypatch.setattr(rows.Trainer, "_end_step", killed)
    with pytest.raises(KeyboardInterrupt):
        cut.lines_of(start)
    cut.lines_of(start)
    assert taken == [1, 2, 3, 3, 4, 5]
    weights = [(each.model(start) / "model.safetensors").read_bytes() for each in (whole, cut)]
    assert weights[0] == weights[1]


def test_missing_videos_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no real videos.*DYNAMONET_REAL_DATA"):
        make_sets(tmp_path / "home", tmp_path)


def test_every_arm_says_what_it_is() -> None:
    assert all(arm.what for arm in ARMS)
    every = [*plan(), *readings()]
    assert len({row.key for row in every}) == len(every)
