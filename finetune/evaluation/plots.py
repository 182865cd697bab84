"""Pictures of a test: confusion, calibration, and videos that were taken for another class."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dynamonet.shards.order import Request
from dynamonet.shards.reader import ClipReader, FailedBatch
from dynamonet.shards.shard_set import ShardSet
from dynamonet.video.transforms import denormalise
from finetune.evaluation.metrics import Predictions

NAMED_CLASSES = 30  # more names than this cannot be read beside a matrix
_FRAMES = 6  # of a filmstrip
_STRIPS = 2  # for each pair of classes
_FRAME_PX = 112
_NAME_LETTERS = 40


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
    if len(classes) <= NAMED_CLASSES:
        axis.set_xticks(range(len(classes)), classes, rotation=60, ha="right", parse_math=False)
        axis.set_yticks(range(len(classes)), classes, parse_math=False)
        for row, column in np.ndindex(*matrix.shape):
            if matrix[row, column]:
                colour = "white" if shares[row, column] > 0.5 else "black"
                text = str(matrix[row, column])
                axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return figure


def draw_calibration(predictions: Predictions) -> Figure:
    """Draws how often the model is right against how sure it is; below the line it is too sure."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axis = figure.subplots()
    said, right, videos = (
        np.array(column) for column in zip(*predictions.calibration(), strict=True)
    )
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="as sure as right")
    axis.scatter(said, right, s=30 + 300 * videos / videos.sum(), alpha=0.8, label="videos")
    axis.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="mean confidence", ylabel="share right")
    axis.set_title(f"calibration error {predictions.calibration_error():.3f}", fontsize=10)
    axis.legend(loc="upper left", fontsize=8, markerscale=0.5)
    return figure


def first_segments(reader: ClipReader, shards: ShardSet) -> dict[str, int]:
    """Returns the row of the first segment of each video that a reader has."""
    names = shards.table["source"].to_pylist()
    return {names[row]: int(row) for row in reader.rows.numbers()[::-1]}


def draw_confused(
    predictions: Predictions,
    pairs: list[tuple[int, int, int]],
    reader: ClipReader,
    shards: ShardSet,
    classes: list[str],
) -> Figure:
    """Draws filmstrips of the surest mistakes of each pair of classes.

    Args:
        pairs: (true class, predicted class, videos), as `Predictions.confused` gives them.
        reader: Of the rows that were predicted.
    """
    row_of = first_segments(reader, shards)
    strips: list[tuple[str, NDArray[np.uint8]]] = []
    for true, said, count in pairs:
        wrong = np.flatnonzero((predictions.labels == true) & (predictions.guesses == said))
        surest = wrong[np.argsort(-predictions.probabilities[wrong, said], kind="stable")]
        for place in surest[:_STRIPS].tolist():
            source, sure = predictions.sources[place], predictions.probabilities[place, said]
            text = (
                f"{classes[true]} taken for {classes[said]} ({count} videos)\n"
                f"{source[-_NAME_LETTERS:]}: {sure:.0%} sure"
            )
            frames = _frames(reader, row_of[source])
            if frames is not None:
                strips.append((text, frames))
    return _draw_strips(strips)


def _frames(reader: ClipReader, row: int) -> NDArray[np.uint8] | None:
    """Returns frames (n, H, W, 3) of a row's middle clip, evenly spaced; None: cannot be read."""
    batch = reader[Request(row)]
    if isinstance(batch, FailedBatch):
        return None
    clip = batch.render()
    shown = np.linspace(0, clip.shape[2] - 1, min(_FRAMES, clip.shape[2])).round().astype(int)
    pixels = denormalise(clip[0, :, shown]).permute(1, 2, 3, 0)
    return (pixels * 255).round().byte().numpy()


def _draw_strips(strips: list[tuple[str, NDArray[np.uint8]]]) -> Figure:
    rows = max(1, len(strips))
    figure = Figure(figsize=(9.0, 1.75 * rows), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for axis in axes:
        axis.set_axis_off()
    for axis, (text, frames) in zip(axes, strips, strict=False):
        axis.imshow(np.concatenate(list(frames), 1))
        axis.set_title(text, fontsize=8, loc="left", parse_math=False)
    return figure
