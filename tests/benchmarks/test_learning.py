"""The learning benchmark at a tiny size, its statistics, and that it never sees a test fold."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.bench_learning import best_of_ours, figures
from benchmarks.learning.arms import ARMS, BY_NAME, MODEL, Budget
from benchmarks.learning.networks import HandMadeMotion, OneFrame
from benchmarks.learning.page import curve_of, render, scores_of
from benchmarks.learning.plan import curve, plan
from benchmarks.learning.rows import Ledger, Runner
from benchmarks.learning.sets import MOTION, REAL, LabelledSet, make_sets
from benchmarks.learning.statistics import Scored, difference, holm
from dynamonet.errors import UserError
from dynamonet.model.config import ModelConfig
from tests.conftest import moving_frames, write_video

TINY = Budget(
    pretrain_minutes=0.01,
    finetune_minutes=0.002,
    seeds=1,
    repeats=1,
    folds=1,
    rendered=27,
    shares=(0.5,),
    curve_seeds=1,
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> dict[str, LabelledSet]:
    """Sets like the real ones: two classes, nine groups in three folds."""
    videos = tmp_path_factory.mktemp("videos")
    for place, name in enumerate((*REAL, "unlabelled")):
        rows = []
        for number in range(18 if name in REAL else 3):
            frames = moving_frames(20, 48, 64, seed=100 * place + number)
            frames = frames if number % 2 else np.ascontiguousarray(frames[::-1])
            group = number // 2
            write_video(videos / name / f"{number}.mp4", frames)
            rows.append((f"{number}.mp4", f"class{number % 2}", f"g{group}", group % 3))
        if name in REAL:
            with (videos / name / "split.csv").open("w", newline="") as file:
                csv.writer(file).writerows([("path", "class", "group", "fold"), *rows])
    return make_sets(tmp_path_factory.mktemp("home"), videos, rendered=TINY.rendered)


def test_no_test_clip_is_in_the_pool(sets: dict[str, LabelledSet]) -> None:
    from dynamonet.shards.shard_set import ShardSet

    pool = ShardSet.open(str(sets["fights"].pool))
    for split in (1, 2, 3):
        names = np.array(pool.table["source"].to_pylist())
        seen = set(names[pool.rows(split=split, part="train").numbers()])
        assert sum(name.startswith("unlabelled/") for name in seen) == 3
        for name in REAL:
            own = ShardSet.open(str(sets[name].shards))
            sources = np.array(own.table["source"].to_pylist())
            for part, there in (("test", False), ("train", True)):
                rows = own.rows(split=split, part=part).numbers()
                assert len(rows) and {f"{name}/{s}" in seen for s in sources[rows]} == {there}


def test_it_runs_whole_and_does_no_row_again(sets: dict[str, LabelledSet], tmp_path: Path) -> None:
    real = [name for name in sets if name != MOTION]
    names = ("scratch", "hand-made motion", "pretrained", "VideoMAE", "VICReg", "norms only")
    arms = [BY_NAME[name] for name in names]
    ledger = Ledger.open(tmp_path / "learning.jsonl")
    runner = Runner(ledger, sets, tmp_path / "home", TINY, threads=1)
    rows = plan(real, TINY, arms)
    for row in rows[: len(rows) // 2]:
        runner.run(row)
    assert "of 0" not in render(ledger, TINY, rows, [])  # cut off, and the page can be made
    assert len(scores_of(ledger, rows, TINY.folds)) < 2 * len(arms)
    for row in rows:
        runner.run(row)
    more = curve(best_of_ours(ledger, rows), real, TINY)
    for row in more:
        runner.run(row)

    page = render(ledger, TINY, rows, more)
    assert "holds all" in page
    headings = "Accuracy,Ahead of scratch?,Ours against the others,Pretraining,With fewer labels"
    for heading in headings.split(","):
        assert f"## {heading}" in page
    found = figures(scores_of(ledger, rows, TINY.folds), curve_of(ledger, more))
    others = ("scratch", "hand-made_motion", "VideoMAE", "VICReg")
    assert [figure.name for figure in found] == [
        f"pretrained_ahead_of_{other}_at_least" for other in others
    ]
    before = ledger.path.read_text()
    again = Ledger.open(ledger.path)
    for row in (*rows, *more):
        Runner(again, sets, tmp_path / "home", TINY, threads=1).run(row)
    assert ledger.path.read_text() == before
    assert again.forget([], TINY) == 0
    assert 0 < again.forget(["VICReg"], TINY) <= 9
    left = len(again.lines)
    assert again.forget([], replace(TINY, pretrain_minutes=1.0)) > len(real) * 4
    assert 0 < len(Ledger.open(ledger.path).lines) < left


def test_missing_videos_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no real videos.*DYNAMONET_REAL_DATA"):
        make_sets(tmp_path / "home", tmp_path, rendered=9)


def test_every_arm_of_a_rate_follows_one_that_is_tuned() -> None:
    for arm in ARMS:
        assert arm.rate_of is None or BY_NAME[arm.rate_of].rate_of is None


def test_the_hand_made_field_is_the_motion_less_the_camera_s() -> None:
    network = HandMadeMotion(ModelConfig.model_validate(MODEL))
    texture = torch.Generator().manual_seed(0)
    still = F.interpolate(torch.rand(1, 3, 32, 32, generator=texture), size=(64, 64))
    square = F.interpolate(torch.rand(1, 3, 8, 8, generator=texture), size=(16, 16))
    clip = still[:, :, None].repeat(1, 1, 8, 1, 1)
    for frame in range(8):
        clip[:, :, frame, 20:36, 8 + 4 * frame : 24 + 4 * frame] = square  # 2 px a frame, halved
    u, v, moved = network.field(clip)[0]
    middle = [u[t, 12:16, 6 + 2 * t : 10 + 2 * t].mean() for t in range(7)]
    assert torch.stack(middle).mean() == pytest.approx(2, abs=0.1)
    assert v[:, 12:16].abs().mean() < 0.1
    assert u[:, :4].abs().max() < 0.1 and moved[:, :4].max() < 0.1
    assert network.field(torch.zeros(1, 3, 8, 64, 64))[0, 2].max() < 0.2  # no texture, no motion
    shifted = network.field(torch.stack([still[0].roll(2 * t, 2) for t in range(8)], 1)[None])
    assert shifted[0, 0, :, 8:24, 8:24].abs().mean() < 0.1  # the camera alone


def test_baselines_see_what_they_say() -> None:
    config = ModelConfig.model_validate(MODEL | {"num_classes": 3, "use_dmr": False})
    clip = torch.rand(2, 3, 8, 64, 64)
    one = OneFrame(config).eval()
    other = clip.clone()
    other[:, :, :3] = 0
    assert torch.equal(one(clip).logits, one(other).logits)  # type: ignore[arg-type]


def test_differences_are_found_where_they_are_and_groups_count() -> None:
    rng = np.random.default_rng(0)
    names = [f"clip{number}" for number in range(300)]
    groups = {name: f"group{number // 10}" for number, name in enumerate(names)}
    base = {name: float(rng.random() < 0.5) for name in names}
    better = {n: max(v, float(rng.random() < 0.3)) for n, v in base.items()}
    a, b = Scored(base, groups, [0.5]), Scored(better, groups, [0.5])
    found = difference([(b, a)])
    assert found.low > 0 and found.p_value < 0.01 and found.low < found.mean < found.high
    same = difference([(a, a), (b, b)])
    assert same.mean == 0 and same.p_value == 1
    # a gain that is all one group's is none that can be relied on
    lucky = {n: 1.0 if groups[n] == "group0" else v for n, v in base.items()}
    assert difference([(Scored(lucky, groups, []), a)]).p_value > 0.5
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_few_labels_are_held_against_the_baseline_with_more() -> None:
    def point(right: float) -> Scored:
        return Scored({"clip": right}, {"clip": "group"}, [right])

    points = {
        (MOTION, "scratch", 0.1): point(0.2),
        (MOTION, "motion", 0.1): point(0.45),
        (MOTION, "scratch", 0.5): point(0.5),
        (MOTION, "motion", 0.5): point(0.9),
        ("fights", "motion", 0.1): point(1.0),
    }
    (found,) = figures({}, points)
    assert found.name == "motion_10%_less_scratch_50%_rendered"
    assert found.value == pytest.approx(-5)


def test_the_rendered_set_s_curve_stands_on_its_one_pretraining() -> None:
    rows = curve("pretrained", [*REAL, MOTION], Budget())
    own = [row for row in rows if row.set == MOTION]
    assert {(row.fold, row.seed, row.repeat) for row in own} == {(0, 0, 0), (0, 0, 1)}
    made = {row.key for row in plan([*REAL, MOTION], Budget())}
    assert all(row.pretraining is None or row.pretraining.key in made for row in rows)
