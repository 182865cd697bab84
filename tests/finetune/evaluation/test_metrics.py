"""What predictions are worth: numbers against plain reckonings of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dynamonet.errors import UserError
from dynamonet.frozen.statistics import Outcomes
from dynamonet.shards.shard_set import ShardSet
from finetune import compare as comparing
from finetune.evaluation.evaluator import ViewPlan, Views, by_video
from finetune.evaluation.metrics import (
    CALIBRATION_BINS,
    Predictions,
)
from finetune.evaluation.plots import draw_calibration, draw_confusion
from finetune.evaluation.protocol import MeasuredPart, Protocol, Times
from finetune.evaluation.run_results import measured_runs
from finetune.series.label_efficiency import Point, draw_curve, labels_saved


def predictions(num: int = 200, classes: int = 5, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num, classes))
    labels = rng.integers(0, classes, num)
    scores[np.arange(num), labels] += 1
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    names = [f"v{n}" for n in range(num)]
    return Predictions(names, names, labels, probabilities, np.ones(num, int))


def test_scores_are_counted_over_videos() -> None:
    found = Predictions(
        sources=["a", "b", "c", "d"],
        groups=["a", "b", "c", "d"],
        labels=np.array([0, 0, 1, 2]),
        probabilities=np.array(
            [[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.1, 0.5, 0.4]]
        ),
        views=np.array([1, 1, 1, 1]),
    )
    assert (found.top(1), found.top(2), found.top(3)) == (0.5, 0.75, 1.0)
    assert found.confusion().tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert found.class_accuracy().tolist() == [0.5, 1.0, 0.0]
    assert found.confused(5) == [(0, 1, 1), (2, 1, 1)] and found.confused(1) == [(0, 1, 1)]
    assert found.log_likelihood() == pytest.approx(np.log([0.8, 0.2, 0.6, 0.4]).mean())
    figure = draw_confusion(found.confusion(), ["x", "y", "$z"])
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["x", "y", "$z"]


def test_calibration_error_as_a_plain_loop_over_bins_finds_it() -> None:
    found = predictions()
    total = 0.0
    for number in range(CALIBRATION_BINS):
        low, high = number / CALIBRATION_BINS, (number + 1) / CALIBRATION_BINS
        inside = [p for p in range(200) if low <= found.probabilities[p].max() < high]
        if inside:
            sure = np.mean([found.probabilities[p].max() for p in inside])
            right = np.mean([found.probabilities[p].argmax() == found.labels[p] for p in inside])
            total += len(inside) * abs(sure - right)
    assert found.calibration_error() == pytest.approx(total / 200)
    assert len(draw_calibration(found).axes) == 1


def write_run(
    folder: Path, correct: dict[str, bool], label: str = "x", split: int = 1, times: int = 1
) -> Path:
    (folder / "test").mkdir(parents=True)
    columns = {"source": list(correct), "label": [label] * len(correct), "group": list(correct)}
    table = pa.table({**columns, "correct": list(correct.values())})
    pq.write_table(table, folder / "test/predictions.parquet")
    part = MeasuredPart("own (01234567)", "test", split, len(correct), len(correct), "0" * 32)
    views = "16 frames x 4 clips x 1 crop"
    run = Protocol(
        part, Times(times, 2), views, "full", 80, "the last step", folder.name, "from scratch", ""
    )
    run.write(folder)
    return folder


def test_two_models_are_compared_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = [f"v{n}" for n in range(40)]
    a = write_run(tmp_path / "a", {v: n < 10 for n, v in enumerate(videos)})
    b = [
        write_run(tmp_path / f"b{s}", {v: n < 20 + s for n, v in enumerate(videos)}, times=3)
        for s in (0, 2)
    ]
    found = comparing.main(["--a", str(a), "--b", *map(str, b)])
    assert found.mean == pytest.approx(11 / 40) and found.p_value < 0.01
    printed = capsys.readouterr().out
    assert "A        top-1 25.0% (95 % interval 13.8% to 40.9%): 40 test videos of split" in printed
    assert "B        top-1 52.5% " in printed and "seed b0, b2, from scratch" in printed
    assert "the 3rd time on these videos, 2 settings so far" in printed
    assert "+27.5 points, 95 % interval" in printed and "give each side several runs" in printed


def test_runs_that_cannot_be_compared_are_told_why(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"v": True, "w": False})
    other = write_run(tmp_path / "b", {"w": True, "u": True})
    with pytest.raises(UserError, match="tested on 2 videos and B on 2, of which 1 are the same"):
        comparing.main(["--a", str(a), "--b", str(other)])
    with pytest.raises(UserError, match=r"no test/predictions.parquet; expected the folder"):
        comparing.main(["--a", str(a), "--b", str(tmp_path)])
    with pytest.raises(UserError, match=r"v is 'y' here and 'x' in another"):
        measured_runs([a, write_run(tmp_path / "c", {"v": True}, label="y")])
    (other / "test/protocol.json").write_text("{}")
    with pytest.raises(UserError, match=r"protocol.json: damaged"):
        measured_runs([other])
    (other / "test/protocol.json").unlink()
    with pytest.raises(UserError, match=r"no test/protocol.json; expected the folder"):
        measured_runs([other])
    (a / "test/predictions.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(UserError, match="damaged"):
        comparing.main(["--a", str(a), "--b", str(other)])


def point(share: float, scratch: float, pretrained: float) -> Point:
    def outcomes(accuracy: float) -> Outcomes:
        right = (np.arange(200) < 200 * accuracy).astype(float)
        return Outcomes(np.stack([right, right]), np.ones(2, np.int64), np.arange(200))

    both = {"from scratch": outcomes(scratch), "pretrained": outcomes(pretrained)}
    return Point(share, int(100 * share), both)


def test_a_curve_says_how_many_labels_pretraining_saves() -> None:
    points = [point(0.1, 0.2, 0.5), point(0.5, 0.45, 0.6), point(1, 0.7, 0.65)]
    saved = labels_saved(points)
    assert saved is not None and saved.startswith(
        "pretrained with 10% of the labels is at least as good as from scratch with 50%: +5.0"
    )
    assert labels_saved(points[1:2]) is None
    nearly = [point(0.1, 0.2, 0.46), point(0.5, 0.455, 0.6)]  # more, and no interval says so
    assert labels_saved(nearly) is None
    figure = draw_curve(points, "own")
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == ["10%\n10", "50%\n50", "100%\n100"]


@pytest.mark.parametrize("seed", range(3))
def test_views_are_averaged_by_their_weights_in_whatever_order_they_come(
    shard_set: Path, seed: int
) -> None:
    shards, draw = ShardSet.open(str(shard_set)), np.random.default_rng(seed)
    rows = draw.permutation(np.repeat(np.arange(len(shards)), 3))
    shares, motion = draw.dirichlet(np.ones(4), len(rows)), draw.normal(size=(len(rows), 2))
    weights = draw.uniform(0.01, 5, len(rows)).astype(np.float32)
    cut = np.sort(draw.integers(0, len(rows), 2))  # among three ranks, one of them with nothing
    parts = [
        Views(rows[some], shares[some], weights[some], motion[some])
        for some in np.split(np.arange(len(rows)), [cut[0], cut[0], cut[1]])
    ]
    found = by_video(Views.joined(parts), shards)
    names = shards.table["source"].to_pylist()
    assert found.sources == sorted(set(names)) and found.views.sum() == len(rows)
    for place, source in enumerate(found.sources):
        own = [view for view, row in enumerate(rows.tolist()) if names[row] == source]
        for mean, values in ((found.probabilities, shares), (found.motion, motion)):
            assert mean is not None
            np.testing.assert_allclose(mean[place], np.average(values[own], 0, weights[own]))
        assert found.labels[place] == shards.columns["label"][rows[own[0]]]


def test_of_three_squares_the_one_that_moves_counts_of_one_all_clips_the_same() -> None:
    frames = torch.zeros(3, 3, 4, 8, 8)
    frames[1] = torch.arange(4.0)[:, None, None]  # brighter by one from frame to frame
    still, moves, other = ViewPlan(1, 3).weights(frames).tolist()
    assert moves == pytest.approx(1.0) and 0 < still == other < 1e-10
    assert ViewPlan(1, 1).weights(frames).tolist() == [1, 1, 1]
