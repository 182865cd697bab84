"""What a model says of videos, as files: JSON, CSV, Parquet. Written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from dynamonet.model.numbers import NUMBERS, POWERS
from dynamonet.storage import atomic_file

if TYPE_CHECKING:
    from finetune.prediction.predictor import WindowPrediction

TABLE_SCHEMA = pa.schema(
    [
        pa.field("video", pa.string(), False),
        pa.field("scope", pa.string(), False),  # window, or video = the mean over its windows
        pa.field("start_seconds", pa.float64(), False),
        pa.field("end_seconds", pa.float64(), False),
        pa.field("rank", pa.int32(), False),  # from 1, the likeliest
        pa.field("class_name", pa.string(), False),
        pa.field("probability", pa.float64(), False),
    ]
)
FEATURES_SCHEMA = pa.schema(
    [
        pa.field("video", pa.string(), False),
        pa.field("path", pa.string(), False),  # absolute path or URI of the video
        pa.field("start_seconds", pa.float64(), False),
        pa.field("end_seconds", pa.float64(), False),
        pa.field("features", pa.list_(pa.float32()), False),
        pa.field("dmr", pa.list_(pa.float32()), False),
        # per second; null of a network that has no filters of its own
        *(pa.field(number.name, pa.float32()) for number in NUMBERS),
    ]
)
FEATURES_FORMAT = "3"  # 2 = with each video's path and the model's digest; 3 = and its motion
FORMAT_KEY, MODEL_KEY = b"dynamonet.features", b"dynamonet.model"  # in the schema's metadata
DIGEST_KEY = b"dynamonet.weights_digest"
_ROWS_HELD = 256  # feature rows that wait for being written together


@dataclass(frozen=True)
class ClassScore:
    """A class and how likely the model finds it."""

    class_name: str
    probability: float


@dataclass(frozen=True)
class WindowScores:
    """The likeliest classes of a window."""

    start_seconds: float
    end_seconds: float
    top: list[ClassScore]


@dataclass(frozen=True)
class VideoScores:
    """What the model says of a video. Frames and size are those that the model was shown."""

    video: str
    seconds: float
    fps: float
    frames: int
    width: int
    height: int
    notes: list[str]
    top: list[ClassScore]  # of the mean over windows
    windows: list[WindowScores]


def write_predictions(
    file: Path, model: str, classes: list[str], videos: list[VideoScores], failed: dict[str, str]
) -> None:
    """Writes what was found as the file's ending says.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_file(file) as growing:
        if file.suffix == ".json":
            content = {
                "model": model,
                "classes": classes,
                "videos": [asdict(video) for video in videos],
                "failed": [{"video": name, "reason": why} for name, why in failed.items()],
            }
            growing.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
            return
        table = pa.Table.from_pylist(list(_rows(videos)), TABLE_SCHEMA)
        if file.suffix == ".csv":
            pc.write_csv(table, growing)
        else:
            pq.write_table(table, growing, compression="zstd")


def _rows(videos: list[VideoScores]) -> Iterator[dict[str, Any]]:
    for video in videos:
        parts = [("window", part) for part in video.windows]
        for scope, part in [*parts, ("video", WindowScores(0.0, video.seconds, video.top))]:
            for rank, guess in enumerate(part.top, 1):
                times = {"start_seconds": part.start_seconds, "end_seconds": part.end_seconds}
                yield {"video": video.video, "scope": scope, "rank": rank} | times | asdict(guess)


def part_files(folder: Path) -> list[Path]:
    """Returns the parts of a folder of features, in order."""
    return sorted(folder.glob("part-*.parquet"))


def feature_row(
    video: str, path: str, window: WindowPrediction, begins: float = 0.0
) -> dict[str, Any]:
    """Returns a window's row of a features file.

    Args:
        path: The video's absolute path or URI.
        begins: Where what was read begins in the video, in seconds.
    """
    return {
        "video": video,
        "path": path,
        "start_seconds": begins + window.start_seconds,
        "end_seconds": begins + window.end_seconds,
        "features": window.seen.features,
        "dmr": window.seen.dmr,
        **motion_columns(window),
    }


def motion_columns(window: WindowPrediction) -> dict[str, float]:
    """Returns a window's named numbers of motion; none of a network without filters of its own."""
    if not len(window.seen.motion):
        return {}
    values = (window.seen.motion / window.frame_seconds ** np.array(POWERS)).tolist()
    return {number.name: value for number, value in zip(NUMBERS, values, strict=True)}


def features_schema(model: str, digest: str, facts: dict[bytes, str] | None = None) -> pa.Schema:
    """Returns the schema of a features file with what made it.

    Args:
        model: The model's folder.
        digest: Of its weights.
        facts: More that is kept in the schema's metadata.
    """
    known = {FORMAT_KEY: FEATURES_FORMAT, MODEL_KEY: model, DIGEST_KEY: digest}
    return FEATURES_SCHEMA.with_metadata({**known, **(facts or {})})


class FeatureRows:
    """The rows of a features file, written in groups as they come."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self.count = 0
        self._writer, self._schema = writer, schema
        self._held: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Adds a window's row."""
        self.count += 1
        self._held.append(row)
        if len(self._held) == _ROWS_HELD:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that are held."""
        self._writer.write_table(pa.Table.from_pylist(self._held, self._schema))
        self._held.clear()


@contextmanager
def features_file(file: Path, schema: pa.Schema) -> Iterator[FeatureRows]:
    """Yields the rows of a Parquet file that takes its name on a clean exit.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_file(file) as growing, pq.ParquetWriter(growing, schema) as writer:
        rows = FeatureRows(writer, schema)
        yield rows
        rows.flush()
