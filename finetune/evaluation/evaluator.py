"""A model on a part of a labelled set: the views of each video averaged, then all that follows."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynamonet.frozen.statistics import Outcomes, accuracy_interval
from dynamonet.model.motion_field import MotionField
from dynamonet.model.network import DynamoNet
from dynamonet.shards.order import Request
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.shard_set import ShardSet
from dynamonet.training.logs.metrics import Evaluation
from dynamonet.training.measuring import Measuring
from dynamonet.video.transforms import weight_by_change
from finetune.evaluation.metrics import Predictions
from finetune.evaluation.motion_pictures import draw_fields, draw_numbers
from finetune.evaluation.plots import draw_calibration, draw_confused, draw_confusion

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

    @classmethod
    def of(cls, shards: ShardSet, clips: int, crops: int) -> ViewPlan:
        """Plans for a set; where every picture is square there is one square to look at."""
        wide = bool((shards.columns["width"] != shards.columns["height"]).any())
        return cls(clips, crops if wide else 1)

    def requests(self, row: int) -> list[Request]:
        offsets = crop_offsets(self.crops)
        return [
            Request(row, clip=clip, num_clips=self.clips, offset=offset)
            for clip in range(self.clips)
            for offset in offsets
        ]

    def weights(self, frames: Tensor) -> Tensor:
        """Returns how much each of some views (B, 3, T, H, W) counts in the mean of its video.

        Of several squares those count more in which more changes, see `weight_by_change`; clips of
        one square all count the same.
        """
        return weight_by_change(frames) if self.crops > 1 else torch.ones(len(frames))


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
) -> Predictions:
    """Averages probabilities over the views of each video, all its segments; see `by_video`.

    Every rank reads its share and gets the whole.
    """
    rows = reader.rows.numbers().tolist()
    requests = [request for row in rows for request in views.requests(row)]
    config, found = model.config, list[Views]()
    for batch in measuring.batches(reader, requests):
        frames = batch.render()[:, :, : config.num_frames]
        with measuring.precision.autocast():
            output = model(frames, predict_frames=False)
        none = frames.new_zeros(len(frames), 0)
        motion = model.numbers_of(frames, output) if config.tells_motion else none
        said = batch.row, output.probabilities, views.weights(frames), motion
        found.append(Views(*(values.cpu().numpy() for values in said)))
    ranks = cast("list[list[Views]]", measuring.rank.gather(found))
    return by_video(Views.joined([part for parts in ranks for part in parts]), shards)


@dataclass(frozen=True)
class Views:
    """What is said of V views."""

    rows: NDArray[np.int64]  # (V,)
    probabilities: NDArray[np.floating]  # (V, N)
    weights: NDArray[np.floating]  # (V,), in the mean of a video
    motion: NDArray[np.floating]  # (V, M), named numbers; M = 0 where there are none

    @classmethod
    def joined(cls, parts: Sequence[Views]) -> Views:
        """Joins several, in the order of their rows."""
        whole = [
            np.concatenate(each) for each in zip(*(vars(p).values() for p in parts), strict=True)
        ]
        order = np.argsort(whole[0], kind="stable")  # the same sums however ranks shared them
        return cls(*(each[order] for each in whole))


def by_video(views: Views, shards: ShardSet) -> Predictions:
    """Averages what is said of the views of each video, all its segments."""
    names, given = shards.table["source"].to_pylist(), shards.table["group"].to_pylist()
    own = [names[row] for row in views.rows.tolist()]
    sources, first, video = np.unique(own, return_index=True, return_inverse=True)
    rows = views.rows[first]

    def mean(values: NDArray[np.floating]) -> NDArray[np.float64]:
        sums = np.zeros((len(sources), values.shape[1]))
        np.add.at(sums, video, values * views.weights[:, None].astype(np.float64))
        return sums / np.bincount(video, views.weights)[:, None]

    return Predictions(
        sources=sources.tolist(),
        groups=[given[row] or names[row] for row in rows.tolist()],
        labels=shards.columns["label"][rows].astype(np.int64),
        probabilities=mean(views.probabilities),
        views=np.bincount(video),
        motion=mean(views.motion) if views.motion.shape[1] else None,
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
