"""A model on a part of a labelled set: the views of each video averaged, then all that follows."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dynamonet.model.motion_field import MotionField
from dynamonet.model.network import DynamoNet, Output
from dynamonet.shards.order import Request
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.shard_set import ShardSet
from dynamonet.training.logs.metrics import Evaluation
from dynamonet.training.measuring import Measuring
from finetune.evaluation.metrics import Predictions
from finetune.evaluation.motion_pictures import draw_fields, draw_numbers
from finetune.evaluation.plots import draw_calibration, draw_confused, draw_confusion
from finetune.evaluation.statistics import Outcomes, accuracy_interval

TOP = 5
PREDICTIONS, PER_CLASS = "test/predictions.parquet", "test/per_class.csv"
_PAIRS_LISTED, _PAIRS_DRAWN = 20, 4


def crop_offsets(crops: int) -> list[float]:
    """Returns where squares lie along the longer side, from 0 to 1."""
    return [0.5] if crops == 1 else np.linspace(0, 1, crops).tolist()


@dataclass(frozen=True)
class ViewPlan:
    """How each segment is looked at: clips spread evenly x squares along the longer side."""

    clips: int
    crops: int

    def requests(self, row: int) -> list[Request]:
        offsets = crop_offsets(self.crops)
        return [
            Request(row, clip=clip, num_clips=self.clips, offset=offset)
            for clip in range(self.clips)
            for offset in offsets
        ]


def views_line(num_frames: int, views: ViewPlan) -> str:
    """Says how each segment is looked at."""
    crops = f"{views.crops} crop{'s' if views.crops > 1 else ''}"
    return f"{num_frames} frames x {views.clips} clips x {crops}"


@torch.no_grad()
def predict_videos(
    model: DynamoNet,
    reader: ClipReader,
    shards: ShardSet,
    views: ViewPlan,
    measuring: Measuring,
    classify: Callable[[Output], Tensor],
) -> Predictions:
    """Averages probabilities over the views of each video (all its segments).

    Every rank reads its share and gets the whole.

    Args:
        classify: Makes probabilities (B, N), on the CPU, of what the model gives.
    """
    numbers = reader.rows.numbers().tolist()
    requests = [request for row in numbers for request in views.requests(row)]
    rows, probabilities, motion = [], [], []
    config = model.config
    for batch in measuring.batches(reader, requests):
        frames = batch.render()[:, :, : config.num_frames]
        with measuring.precision.autocast():
            output = model(frames, predict_frames=False)
        rows += batch.row.tolist()
        probabilities += classify(output).tolist()
        tells = config.tells_motion
        motion += model.numbers_of(frames, output).tolist() if tells else [[]] * len(frames)
    merged: list[tuple[int, list[float], list[float]]] = []
    for part in measuring.rank.gather(list(zip(rows, probabilities, motion, strict=True))):
        merged += part  # type: ignore[operator]
    return by_video([each[:2] for each in merged], shards, [each[2] for each in merged])


def by_video(
    views: list[tuple[int, list[float]]],
    shards: ShardSet,
    motion: Sequence[Sequence[float]] = (),
) -> Predictions:
    """Averages probabilities over the views (row, probabilities) of each video.

    Args:
        motion: The named numbers of each view, to be averaged too; empty = there are none.
    """
    names, given = shards.table["source"].to_pylist(), shards.table["group"].to_pylist()
    labels, group_of = shards.columns["label"], dict(zip(names, given, strict=True))
    gathered: dict[str, list[list[float]]] = {}
    label_of: dict[str, int] = {}
    for row, probabilities in sorted(views, key=lambda item: item[0]):
        gathered.setdefault(names[row], []).append(probabilities)
        label_of[names[row]] = int(labels[row])
    sources = sorted(gathered)
    numbers = None
    if motion and motion[0]:
        place = {source: index for index, source in enumerate(sources)}
        videos = np.array([place[names[row]] for row, _ in views])
        numbers = np.zeros((len(sources), len(motion[0])))
        np.add.at(numbers, videos, np.array(motion))
        numbers /= np.bincount(videos)[:, None]
    return Predictions(
        sources=sources,
        groups=[group_of[source] or source for source in sources],
        labels=np.array([label_of[s] for s in sources]),
        probabilities=np.array([np.mean(gathered[s], 0) for s in sources]),
        views=np.array([len(gathered[s]) for s in sources]),
        motion=numbers,
    )


def metrics_of(predictions: Predictions, part: str) -> dict[str, float]:
    """Returns all numbers of a part (test, val), each named `part/...`."""
    low, high = accuracy_interval(Outcomes.of_one(predictions.correct, predictions.groups))
    metrics = {
        "top1": predictions.top(1),
        "top1_low": low,
        "top1_high": high,
        "class_mean": float(np.nanmean(predictions.class_accuracy())),
        "calibration_error": predictions.calibration_error(),
        "log_likelihood": predictions.log_likelihood(),
        "videos": float(len(predictions.sources)),
    }
    if predictions.probabilities.shape[1] > TOP:
        metrics[f"top{TOP}"] = predictions.top(TOP)
    return {f"{part}/{name}": value for name, value in metrics.items()}


def evaluate_test(
    predictions: Predictions,
    reader: ClipReader,
    shards: ShardSet,
    classes: list[str],
    model: DynamoNet | None = None,
) -> Evaluation:
    """Makes numbers, tables and pictures of the test part; reads a few clips again to draw them.

    Args:
        classes: What labels and probabilities are numbered by.
        model: Whose motion field is drawn; None = it is not.
    """
    matrix = predictions.confusion()
    pairs = predictions.confused(_PAIRS_LISTED)
    figures = {
        "test/confusion.png": draw_confusion(matrix, classes),
        "test/calibration.png": draw_calibration(predictions),
    }
    if pairs:
        figures["test/confused.png"] = draw_confused(
            predictions, pairs[:_PAIRS_DRAWN], reader, shards, classes
        )
    if (numbers := draw_numbers(predictions, classes)) is not None:
        figures["test/motion_numbers.png"] = numbers
    files = {
        PER_CLASS: as_csv(
            ("class", "videos", "accuracy"),
            zip(classes, matrix.sum(1), map(_share, predictions.class_accuracy()), strict=True),
        ),
        "test/confused.csv": as_csv(
            ("true", "predicted", "videos"),
            [(classes[true], classes[said], count) for true, said, count in pairs],
        ),
        PREDICTIONS: _table(predictions, classes),
    }
    if model is not None and model.config.tells_motion:
        fields = partial(_field_of, model)
        if (moving := draw_fields(predictions, reader, shards, classes, fields)) is not None:
            files["test/motion_field.png"] = moving
    return Evaluation(metrics_of(predictions, "test"), figures, files)


@torch.no_grad()
def _field_of(model: DynamoNet, clip: Tensor) -> MotionField:
    device = next(model.parameters()).device
    output = model(clip[:, :, : model.config.num_frames].to(device), predict_frames=False)
    return model.motion_field(output.filters)


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def as_csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([head, *rows])
    return text.getvalue().encode()


def _table(predictions: Predictions, classes: list[str]) -> bytes:
    """Returns predictions per video as Parquet bytes."""
    order = np.argsort(-predictions.probabilities, 1, kind="stable")[:, :TOP]
    best = np.take_along_axis(predictions.probabilities, order, 1)
    true = predictions.probabilities[np.arange(len(order)), predictions.labels]
    table = pa.table(
        {
            "source": predictions.sources,
            "group": predictions.groups,
            "label": [classes[i] for i in predictions.labels],
            "predicted": [classes[i] for i in order[:, 0]],
            "correct": predictions.correct,
            "label_probability": true,
            "views": predictions.views,
            "top_classes": [[classes[i] for i in row] for row in order],
            "top_probabilities": best.tolist(),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
