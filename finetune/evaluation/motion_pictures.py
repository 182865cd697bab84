"""Pictures of the motion field of a test: arrows over clips that loop, numbers that tell apart."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dynamonet.model.motion_field import MotionField
from dynamonet.model.numbers import NUMBERS
from dynamonet.shards.order import Request
from dynamonet.shards.reader import ClipReader, FailedBatch
from dynamonet.shards.shard_set import ShardSet
from dynamonet.video.transforms import denormalise
from finetune.evaluation.metrics import Predictions
from finetune.evaluation.plots import NAMED_CLASSES, first_segments

_SHOWN = 3  # clips that were right, and as many that were wrong
_TILE_PX, _TEXT_PX, _LETTERS = 160, 30, 26
_LONGEST = 2.0  # cells that the fastest arrow is long
_LEAST = 0.15  # of the fastest, below which no arrow is drawn
_PLOTTED = 6
_FRAME_MS = 120

Fields = Callable[[Tensor], MotionField]  # of a clip (1, 3, T, H, W)


def draw_fields(
    predictions: Predictions,
    reader: ClipReader,
    shards: ShardSet,
    classes: list[str],
    fields: Fields,
) -> bytes | None:
    """Draws arrows over the surest right and wrong videos, as a picture that moves (APNG).

    Args:
        reader: Of the rows that were predicted.

    Returns:
        None where no video can be read.
    """
    row_of = first_segments(reader, shards)
    tiles: list[list[Image.Image]] = []
    for place in _surest(predictions):
        batch = reader[Request(row_of[predictions.sources[place]])]
        if isinstance(batch, FailedBatch):
            continue
        true, said = (classes[each[place]] for each in (predictions.labels, predictions.guesses))
        right = true == said
        text = f"{said[:_LETTERS]}\n" + ("right" if right else f"wrong: {true}"[:_LETTERS])
        tiles.append(list(_tile(batch.render(), fields, text, right=right)))
    if not tiles:
        return None
    frames = [_joined(each) for each in zip(*tiles, strict=False)]
    first = frames[0].quantize(128)
    rest = [frame.quantize(palette=first, dither=Image.Dither.NONE) for frame in frames[1:]]
    stream = io.BytesIO()
    first.save(stream, "PNG", save_all=True, append_images=rest, duration=_FRAME_MS, loop=0)  # type: ignore[call-arg]
    return stream.getvalue()


def _surest(predictions: Predictions) -> list[int]:
    """Returns the places of some right videos and some wrong ones, of different classes."""
    sure = predictions.probabilities.max(1)
    found: list[int] = []
    for wanted in (True, False):
        seen: set[int] = set()
        for place in np.argsort(-sure, kind="stable").tolist():
            label = int(predictions.labels[place])
            if bool(predictions.correct[place]) == wanted and label not in seen:
                seen.add(label)
                found.append(place)
            if len(seen) == _SHOWN:
                break
    return found


def _tile(clip: Tensor, fields: Fields, text: str, *, right: bool) -> Iterator[Image.Image]:
    """Yields the frames of a clip, with arrows of the motion less the camera's, and a title."""
    field = fields(clip)
    u, v = (each[0].cpu().numpy() for each in (field.u, field.v))  # N, gh, gw
    u, v = (each - np.median(each, axis=(1, 2), keepdims=True) for each in (u, v))
    speed = np.hypot(u, v)
    fastest = max(float(np.quantile(speed, 0.995)), 1e-6)
    rows, columns = speed.shape[1:]
    cell = _TILE_PX / max(rows, columns)
    pixels = (denormalise(clip[0, :, : len(u)].transpose(0, 1)) * 255).round().byte()
    font = ImageFont.load_default(11)
    for number, picture in enumerate(pixels.permute(0, 2, 3, 1).cpu().numpy()):
        tile = Image.new("RGB", (_TILE_PX, _TILE_PX + _TEXT_PX), "white")
        shown = Image.fromarray(picture).resize((_TILE_PX, _TILE_PX), Image.Resampling.BICUBIC)
        tile.paste(shown, (0, _TEXT_PX))
        draw = ImageDraw.Draw(tile)
        colour = "#1a7f37" if right else "#b42318"
        draw.multiline_text((2, 1), _printable(text), fill=colour, font=font, spacing=1)
        for y, x in np.argwhere(speed[number] > _LEAST * fastest):
            length = _LONGEST * cell / fastest
            start = np.array([(x + 0.5) * cell, (y + 0.5) * cell + _TEXT_PX])
            step = np.array([u[number, y, x], v[number, y, x]]) * length
            _arrow(draw, start, start + step)
        yield tile


def _arrow(draw: ImageDraw.ImageDraw, start: NDArray[np.float64], end: NDArray[np.float64]) -> None:
    along = (end - start) * 0.3
    across = np.array([-along[1], along[0]]) * 0.7
    yellow = "#ffd60a"
    draw.line([*start, *end], fill=yellow, width=2)
    draw.polygon([*end, *(end - along + across), *(end - along - across)], fill=yellow)


def _printable(text: str) -> str:
    """Returns text with what the font has no letter for replaced."""
    return "\n".join(
        line.encode("latin-1", "replace").decode("latin-1") for line in text.split("\n")
    )


def _joined(tiles: tuple[Image.Image, ...]) -> Image.Image:
    """Returns tiles side by side, in two rows."""
    columns = min(_SHOWN, len(tiles))
    rows = -(-len(tiles) // columns)
    whole = Image.new("RGB", (columns * (_TILE_PX + 4), rows * (_TILE_PX + _TEXT_PX + 4)), "white")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        whole.paste(tile, (column * (_TILE_PX + 4), row * (_TILE_PX + _TEXT_PX + 4)))
    return whole


def draw_numbers(predictions: Predictions, classes: list[str]) -> Figure | None:
    """Draws the six numbers of motion that tell the classes apart best, class by class.

    They are those with the greatest variance between classes, as a multiple of that within; None
    where no number was measured or a single class was.
    """
    values, labels = predictions.motion, predictions.labels
    present = np.unique(labels)
    if values is None or len(present) < 2:
        return None
    means = np.array([values[labels == label].mean(0) for label in present])
    within = np.mean([values[labels == label].var(0) for label in present], 0)
    best = np.argsort(-means.var(0) / (within + 1e-12 + 1e-6 * values.var(0)), kind="stable")
    shown = present[:NAMED_CLASSES]
    figure = Figure(figsize=(13, 3.4 + 0.34 * len(shown)), layout="constrained")
    axes = figure.subplots(2, _PLOTTED // 2, sharey=True)
    axes[0, 0].invert_yaxis()
    for axis, number in zip(axes.flatten(), best.tolist(), strict=False):
        axis.boxplot(
            [values[labels == label, number] for label in shown],
            orientation="horizontal",
            widths=0.6,
        )
        axis.set_yticks(range(1, len(shown) + 1), [classes[i] for i in shown], parse_math=False)
        about = NUMBERS[number]
        axis.set_title(f"{about.name}, {about.unit}", fontsize=9)
        axis.set_xlabel("\n".join(textwrap.wrap(about.meaning, 60)), fontsize=7)
        axis.tick_params(labelsize=7)
    return figure
