"""One picture a filter: the segments next to its threshold, each with its score.

    left out    [ . . . . ] 0.998   [ . . . . ] 0.996     nearest to the threshold first
    kept        [ . . . . ] 0.981   [ . . . . ] 0.974

Where the threshold is null, segments from the least score to the greatest, so that one can be
chosen. All are read from the tars, which hold what the index leaves out, too.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from data_prep.segments.filters import FILTERS, Filter, sift
from data_prep.settings import FilterSettings, PrepSettings
from data_prep.shards.manifest import Record
from dynamonet import cluster
from dynamonet.shards import index
from dynamonet.storage import Folder
from dynamonet.video.decode import DecodeError, decode_frames

GALLERY = "gallery"  # folder of the set
SHOWN = 8  # segments on a side of a threshold
FRAMES = 4  # of a segment
THUMB_PX = 72  # longest side of a frame
LINE_PX = 34  # height of a strip's two lines of text
COLUMNS = 2

Strip = list[NDArray[np.uint8]]  # frames (H, W, 3) RGB


@dataclass(frozen=True)
class ShownSegment:
    """A segment in a gallery."""

    name: str  # of the video
    start_seconds: float
    end_seconds: float
    score: float
    frames: int
    place: tuple[str, int, int]  # tar, offset, size

    @property
    def caption(self) -> str:
        name = self.name if len(self.name) <= 40 else f"...{self.name[-37:]}"
        return f"{self.score:.4g}   {self.start_seconds:.1f}-{self.end_seconds:.1f} s\n{name}"


def draw_galleries(
    output: Folder, records: dict[str, Record], settings: PrepSettings
) -> dict[str, bytes]:
    """Draws the picture of every filter into the set; Ray must be connected.

    Returns:
        PNG files by name.
    """
    kept = index.read_table(output, index.INDEX)
    rows = pa.concat_tables([record.rows for record in records.values()])
    left_out = sift(rows, settings.filters)[1]
    chosen = {item: choose(item, settings.filters, kept, left_out.get(item)) for item in FILTERS}
    wanted = list({shown for lines in chosen.values() for line in lines.values() for shown in line})
    parts = (wanted[i : i + SHOWN] for i in range(0, len(wanted), SHOWN))
    arguments = ((part, output.path) for part in parts)
    strips: dict[ShownSegment, Strip] = {}
    for decoded in cluster.in_parallel(_strips, arguments):
        strips |= decoded
    pictures = {
        f"{item.setting}.png": _picture(_title(item, settings.filters), lines, strips)
        for item, lines in chosen.items()
    }
    for name, data in pictures.items():
        output.write(f"{GALLERY}/{name}", data)
    return pictures


def choose(
    item: Filter, settings: FilterSettings, kept: pa.Table, left_out: pa.Table | None
) -> dict[str, list[ShownSegment]]:
    """Returns the segments of a filter's picture, by the heading of their line.

    Args:
        kept, left_out: Rows (INDEX_SCHEMA) of the index, and those that the filter leaves out.
    """
    threshold, scores = item.threshold(settings), kept[item.score].to_numpy()
    if threshold is None or left_out is None:
        order = np.argsort(scores, kind="stable")
        spread = np.linspace(0, len(order) - 1, min(2 * SHOWN, len(order))).round().astype(int)
        return {"from the least score to the greatest": _shown(item, kept, order[spread])}
    lines = {"left out": left_out, "kept": kept}
    return {
        f"{name} ({len(rows):,})": _shown(item, rows, _nearest(rows[item.score], threshold))
        for name, rows in lines.items()
    }


def _nearest(scores: pa.ChunkedArray, threshold: float) -> NDArray[np.int64]:
    return np.argsort(np.abs(scores.to_numpy() - threshold), kind="stable")[:SHOWN]


def _shown(item: Filter, rows: pa.Table, places: NDArray[np.int64]) -> list[ShownSegment]:
    return [
        ShownSegment(
            row["source"],
            row["start_seconds"],
            row["end_seconds"],
            row[item.score],
            row["frames"],
            (row["shard"], row["offset"], row["size"]),
        )
        for row in rows.take(places).to_pylist()
    ]


def _title(item: Filter, settings: FilterSettings) -> str:
    threshold = item.threshold(settings)
    if threshold is None:
        return f"{item.score}: filters.{item.setting} is off"
    return f"{item.score}: filters.{item.setting} = {threshold:g}, nearest to it first"


def _strips(wanted: list[ShownSegment], output: str) -> dict[ShownSegment, Strip]:
    """Decodes the frames of segments; empty where that fails. Runs in a Ray task."""
    strips = {}
    for shown in wanted:
        try:
            strips[shown] = _strip(shown, Folder.at(output))
        except (DecodeError, OSError):
            strips[shown] = []  # its caption is shown without frames
    return strips


def _strip(shown: ShownSegment, folder: Folder) -> Strip:
    data = folder.read_range(*shown.place)
    numbers = range(0, shown.frames, -(-shown.frames // FRAMES))
    return [_small(frame) for frame in decode_frames(data, numbers)]


def _small(frame: VideoFrame) -> NDArray[np.uint8]:
    factor = THUMB_PX / max(frame.width, frame.height)
    width, height = (max(2, round(side * factor)) for side in (frame.width, frame.height))
    picture = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.asarray(picture, np.uint8)


def _picture(
    title: str, lines: dict[str, list[ShownSegment]], strips: dict[ShownSegment, Strip]
) -> bytes:
    """Returns the PNG of one filter."""
    cell_width, cell_height = FRAMES * (THUMB_PX + 2) + 16, THUMB_PX + LINE_PX + 8
    heights = [28 + cell_height * -(-len(line) // COLUMNS) for line in lines.values()]
    sheet = Image.new("RGB", (COLUMNS * cell_width + 16, 32 + sum(heights)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    draw.text((12, 8), title, "black", ImageFont.load_default(size=15))
    top = 32
    for (heading, line), height in zip(lines.items(), heights, strict=True):
        draw.text((12, top + 4), heading if line else f"{heading}: none", "dimgray", font)
        for number, shown in enumerate(line):
            left = 12 + number % COLUMNS * cell_width
            y = top + 24 + number // COLUMNS * cell_height
            for place, frame in enumerate(strips.get(shown, [])[:FRAMES]):
                sheet.paste(Image.fromarray(frame), (left + place * (THUMB_PX + 2), y))
            draw.text((left, y + THUMB_PX + 2), shown.caption, "black", font)
        top += height
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()
