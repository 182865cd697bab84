"""Accuracy on a test part: several clips of each video, their probabilities averaged."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dynamonet.model.network import DynamoNet
from dynamonet.shards.index import ShardSet
from dynamonet.shards.order import even_share
from dynamonet.shards.reader import ClipReader, Request, batches
from dynamonet.training.precision import Precision
from dynamonet.training.ranks import Rank
from dynamonet.training.task import Evaluation
from dynamonet.video.transforms import render

TOP = 5
_NAMED_CLASSES = 30  # more names than this cannot be read beside a matrix


@dataclass(frozen=True)
class Predictions:
    """What a model says of each test video. V videos, N classes."""

    sources: list[str]
    labels: NDArray[np.int64]  # (V,)
    probabilities: NDArray[np.float64]  # (V, N), averaged over clips
    clips: NDArray[np.int64]  # (V,) clips that were averaged

    def top(self, k: int) -> float:
        """Returns the share of videos whose class is among the k likeliest."""
        best = np.argsort(-self.probabilities, 1, kind="stable")[:, :k]
        return float((best == self.labels[:, None]).any(1).mean())

    def confusion(self) -> NDArray[np.int64]:
        """Returns counts (N, N): rows are true classes, columns predicted ones."""
        num = self.probabilities.shape[1]
        matrix = np.zeros((num, num), np.int64)
        np.add.at(matrix, (self.labels, self.probabilities.argmax(1)), 1)
        return matrix

    def class_accuracy(self) -> NDArray[np.float64]:
        """Returns the accuracy within each class (N,), NaN where the test part has no video."""
        matrix = self.confusion()
        with np.errstate(invalid="ignore"):
            return np.diag(matrix) / matrix.sum(1)


def evaluate(
    model: DynamoNet,
    reader: ClipReader,
    shards: ShardSet,
    *,
    rank: Rank,
    precision: Precision,
    test_clips: int,
    batch_size: int,
) -> Evaluation:
    """Measures a model on the reader's rows; every rank reads its share and all get the result."""
    predictions = predict(
        model,
        reader,
        shards,
        rank=rank,
        precision=precision,
        test_clips=test_clips,
        batch_size=batch_size,
    )
    classes = shards.classes
    per_class = predictions.class_accuracy()
    metrics = {
        "test/top1": predictions.top(1),
        "test/class_mean": float(np.nanmean(per_class)),
        "test/videos": float(len(predictions.sources)),
        "test/clips_a_segment": float(test_clips),
    }
    if len(classes) > TOP:
        metrics[f"test/top{TOP}"] = predictions.top(TOP)
    counts = predictions.confusion().sum(1)
    table = "class,videos,accuracy\n" + "".join(
        f'"{name}",{count},{"" if np.isnan(value) else f"{value:.4f}"}\n'
        for name, count, value in zip(classes, counts, per_class, strict=True)
    )
    files = {
        "test/per_class.csv": table.encode(),
        "test/predictions.parquet": _table(predictions, classes),
    }
    figures = {"test/confusion.png": draw_confusion(predictions.confusion(), classes)}
    return Evaluation(metrics, figures, files)


@torch.no_grad()
def predict(
    model: DynamoNet,
    reader: ClipReader,
    shards: ShardSet,
    *,
    rank: Rank,
    precision: Precision,
    test_clips: int,
    batch_size: int,
) -> Predictions:
    """Averages softmax over the clips of each video (all its segments)."""
    requests = [
        Request(int(row), clip=clip, num_clips=test_clips)
        for row in reader.rows
        for clip in range(test_clips)
    ]
    mine = [requests[i] for i in even_share(len(requests), rank.index, rank.count)]
    groups = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    rows, found = [], []
    config = model.config
    for batch in batches(reader, groups, processes=0, prefetch=1):
        frames = render(batch.to(rank.device), config.frame_px)[:, :, : config.num_frames]
        with precision.autocast():
            output = model(frames, predict_frames=False)
        assert output.logits is not None
        rows += batch.row.tolist()
        found += output.logits.double().softmax(1).cpu().tolist()
    merged: list[tuple[int, list[float]]] = []
    for part in rank.gather(list(zip(rows, found, strict=True))):
        merged += part  # type: ignore[operator]
    return _by_video(merged, shards)


def _by_video(clips: list[tuple[int, list[float]]], shards: ShardSet) -> Predictions:
    names, labels = shards.table["source"].to_pylist(), shards.columns["label"]
    gathered: dict[str, list[list[float]]] = {}
    label_of: dict[str, int] = {}
    for row, probabilities in sorted(clips, key=lambda item: item[0]):
        gathered.setdefault(names[row], []).append(probabilities)
        label_of[names[row]] = int(labels[row])
    sources = sorted(gathered)
    return Predictions(
        sources=sources,
        labels=np.array([label_of[s] for s in sources]),
        probabilities=np.array([np.mean(gathered[s], 0) for s in sources]),
        clips=np.array([len(gathered[s]) for s in sources]),
    )


def _table(predictions: Predictions, classes: list[str]) -> bytes:
    """Returns predictions per video as Parquet bytes."""
    order = np.argsort(-predictions.probabilities, 1, kind="stable")[:, :TOP]
    best = np.take_along_axis(predictions.probabilities, order, 1)
    table = pa.table(
        {
            "source": predictions.sources,
            "label": [classes[i] for i in predictions.labels],
            "predicted": [classes[i] for i in order[:, 0]],
            "correct": order[:, 0] == predictions.labels,
            "clips": predictions.clips,
            "top_classes": [[classes[i] for i in row] for row in order],
            "top_probabilities": best.tolist(),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def draw_confusion(matrix: NDArray[np.int64], classes: list[str]) -> Figure:
    """Draws a confusion matrix, each row as shares of its class."""
    side = min(12.0, 3.0 + 0.35 * len(classes))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axis, shrink=0.8, label="share of the class's videos")
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if len(classes) <= _NAMED_CLASSES:
        axis.set_xticks(range(len(classes)), classes, rotation=60, ha="right")
        axis.set_yticks(range(len(classes)), classes)
        for row, column in np.ndindex(*matrix.shape):
            if matrix[row, column]:
                colour = "white" if shares[row, column] > 0.5 else "black"
                text = str(matrix[row, column])
                axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return figure
