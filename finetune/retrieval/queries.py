"""What a search is asked with: a window of the file, a new video, a list of labelled ones."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynamonet.errors import UserError
from dynamonet.model.numbers import signed_root
from dynamonet.video.files import find_videos
from finetune.retrieval.features import MOTION, PARTS, FeatureTable, Scaling
from finetune.retrieval.knn import Rows
from finetune.retrieval.settings import NearestSettings

if TYPE_CHECKING:
    from finetune.prediction.predictor import WindowPrediction


def split_query(windows: FeatureTable, text: str) -> tuple[str, float | None]:
    """Splits VIDEO@SECONDS; a name that itself holds an @ is tried whole first."""
    name, sign, time = text.rpartition("@")
    if len(windows.of(text)) or Path(text).exists() or not sign:
        return text, None
    try:
        return name, float(time)
    except ValueError:
        return text, None


def holding(windows: FeatureTable, own: np.ndarray, seconds: float, name: str) -> np.ndarray:
    """Tells which of a video's own rows hold a moment.

    Raises:
        UserError: none does.
    """
    start, end = windows.start_seconds[own], windows.end_seconds[own]
    holds = (start <= seconds) & (seconds < end)
    if not holds.any():
        raise UserError(
            f"{name}@{seconds:g}: no window there; its windows are between {start.min():.1f} and "
            f"{end.max():.1f} s"
        )
    return holds


def windows_of_new(
    windows: FeatureTable,
    scaling: Scaling,
    name: str,
    seconds: float | None,
    options: NearestSettings,
) -> Rows:
    """Computes the windows of a video that is not in the file, scaled as those in it."""
    videos, _ = find_videos([name])
    if len(videos) != 1 or options.model is None:
        hint = windows.closest(name) if not videos else "; for a new video give --model MODEL too"
        raise UserError(f"{name}: not in {windows.place}{hint}")
    # here, because torch takes seconds that a search by a window of the file need not wait for
    from finetune.prediction.predictor import Predictor, WindowPrediction, predict_windows
    from finetune.prediction.reading import Ended

    model = Predictor(options.model, batch_size=8, pictures=False, pixel_scale=options.pixel_scale)
    if model.digest != windows.digest:
        raise UserError(
            f"{model.folder}: not the model that made {windows.place} ({windows.model}); distances "
            "between features of two models mean nothing"
        )
    found = [item for _, item in predict_windows(model, videos, model.reading(), processes=0)]
    seen = [item for item in found if isinstance(item, WindowPrediction)]
    for item in found:
        if isinstance(item, Ended) and item.failure is not None:
            raise UserError(f"{name}: cannot be read: {item.failure}")
    if seconds is not None:
        inside = [w for w in seen if w.start_seconds <= seconds < w.end_seconds]
        if not inside:
            raise UserError(f"{name}@{seconds:g}: it ends after {seen[-1].end_seconds:.1f} s")
        seen = inside
    return scaling(rows_of(seen, options.by))


def rows_of(windows: list[WindowPrediction], by: str) -> Rows:
    """Returns what distances are computed from, of windows that are in no file, (N, D)."""
    from finetune.prediction.writers import motion_columns

    parts = []
    for part in PARTS[by]:
        if part == MOTION:
            values = np.array(
                [[*motion_columns(window).values()] for window in windows], np.float32
            )
            parts.append(signed_root(values))
        else:
            parts.append(np.stack([getattr(window.seen, part) for window in windows]))
    return np.concatenate(parts, axis=1)


def read_labels(file: Path) -> list[dict[str, str]]:
    """Reads a CSV of path[,label,...] as it is.

    Raises:
        UserError: it cannot be read, has no such column, or a row of another length.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--labelled {file}: cannot be read: {error}") from None
    if rows and "path" not in rows[0]:
        raise UserError(f"--labelled {file}: no column path; it has {', '.join(rows[0])}")
    for number, row in enumerate(rows, 2):
        if None in row:
            raise UserError(f"--labelled {file}: row {number} has more values than columns")
    return [{name: value or "" for name, value in row.items()} for row in rows]


def labelled_videos(windows: FeatureTable, file: Path) -> np.ndarray:
    """Returns the numbers of the videos of a CSV of path[,label]; without an empty label."""
    rows = read_labels(file)
    names = [row["path"] for row in rows if "label" not in row or row["label"].strip()]
    base, group = common_folder(windows.paths), windows.group
    lookup = dict(zip(windows.videos, group, strict=True))
    lookup |= dict(zip(windows.paths, group, strict=True))
    lookup |= {below(p, base): g for p, g in zip(windows.paths, group, strict=True)}
    absent = [name for name in names if name not in lookup]
    if absent:
        raise UserError(
            f"--labelled {file}: {len(absent)} of {len(names)} not in {windows.place}, the first "
            f"{absent[0]}{windows.closest(absent[0])}"
        )
    return np.unique(np.array([lookup[name] for name in names], np.int64))


def common_folder(paths: list[str]) -> str:
    """Returns the folder below which all videos lie."""
    return os.path.commonpath({str(Path(path).parent) for path in paths})


def below(path: str, base: str) -> str:
    """Returns a video's path below a folder."""
    return os.path.relpath(path, base)
