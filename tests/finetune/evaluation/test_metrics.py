"""What predictions are worth: numbers against plain reckonings of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from dynamonet.errors import UserError
from finetune import compare as comparing
from finetune.evaluation.metrics import (
    CALIBRATION_BINS,
    AccuracyComparison,
    Predictions,
    compare_accuracy,
    interval,
)
from finetune.evaluation.plots import draw_calibration, draw_confusion
from finetune.evaluation.run_results import videos_of
from finetune.train.label_efficiency import Point, draw_curve, labels_saved


def predictions(num: int = 200, classes: int = 5, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num, classes))
    labels = rng.integers(0, classes, num)
    scores[np.arange(num), labels] += 1
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return Predictions([f"v{n}" for n in range(num)], labels, probabilities, np.ones(num, int))


def test_scores_are_counted_over_videos() -> None:
    found = Predictions(
        sources=["a", "b", "c", "d"],
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


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(40):
        low, high = interval((rng.random(100) < 0.7).astype(float))
        covered += low <= 0.7 <= high
    assert covered >= 34
    assert interval(np.ones(5)) == (1.0, 1.0) and interval(np.array([0.5])) == (0.5, 0.5)


def test_with_one_run_on_each_side_the_paired_test_is_mcnemars() -> None:
    a = np.array([1.0] * 40 + [0.0] * 40)
    b = a.copy()
    b[:5], b[40:54] = 0, 1  # five lost, fourteen won
    found = compare_accuracy(a, b)
    assert found.difference == pytest.approx(9 / 80)
    assert (found.only_a, found.only_b) == (5 / 80, 14 / 80)
    assert found.low < 9 / 80 < found.high
    assert found.p_value == pytest.approx(binomtest(5, 19).pvalue, rel=0.25)
    same = compare_accuracy(a, a)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def write_run(folder: Path, correct: dict[str, bool], label: str = "x") -> Path:
    (folder / "test").mkdir(parents=True)
    columns = {"source": list(correct), "label": [label] * len(correct)}
    table = pa.table({**columns, "correct": list(correct.values())})
    pq.write_table(table, folder / "test/predictions.parquet")
    return folder


def test_two_models_are_compared_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = [f"v{n}" for n in range(40)]
    a = write_run(tmp_path / "a", {v: n < 10 for n, v in enumerate(videos)})
    b = [
        write_run(tmp_path / f"b{s}", {v: n < 20 + s for n, v in enumerate(videos)}) for s in (0, 2)
    ]
    found = comparing.main(["--a", str(a), "--b", *map(str, b)])
    assert found.difference == pytest.approx(11 / 40) and found.p_value < 0.01
    printed = capsys.readouterr().out
    assert "A        top-1 25.0%, 1 run:" in printed and "B        top-1 52.5%, 2 runs:" in printed
    assert "+27.5 points, 95 % interval" in printed


def test_runs_that_cannot_be_compared_are_told_why(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", {"v": True, "w": False})
    other = write_run(tmp_path / "b", {"w": True, "u": True})
    with pytest.raises(UserError, match="tested on 2 videos and B on 2, of which 1 are the same"):
        comparing.main(["--a", str(a), "--b", str(other)])
    with pytest.raises(UserError, match=r"no test/predictions.parquet; expected the folder"):
        comparing.main(["--a", str(a), "--b", str(tmp_path)])
    with pytest.raises(UserError, match=r"v is 'y' here and 'x' in another"):
        videos_of([a, write_run(tmp_path / "c", {"v": True}, label="y")])
    (a / "test/predictions.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(UserError, match="damaged"):
        comparing.main(["--a", str(a), "--b", str(other)])


def point(share: float, scratch: float, pretrained: float) -> Point:
    scores = {"from scratch": [scratch] * 2, "pretrained": [pretrained] * 2}
    around = {way: (value[0] - 0.05, value[0] + 0.05) for way, value in scores.items()}
    return Point(share, int(100 * share), scores, around, AccuracyComparison(0, 0, 0, 1, 0, 0))


def test_a_curve_says_how_many_labels_pretraining_saves() -> None:
    points = [point(0.1, 0.2, 0.5), point(0.5, 0.45, 0.6), point(1, 0.7, 0.65)]
    assert labels_saved(points) == (
        "pretrained with 10% of the labels is at least as good as from scratch with 50%"
    )
    assert labels_saved(points[1:2]) is None
    figure = draw_curve(points, "own")
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == ["10%\n10", "50%\n50", "100%\n100"]
