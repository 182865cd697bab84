"""Many videos: each is read once, told on the console, and put into the files asked for."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from dynamonet.errors import UserError
from dynamonet.video.files import VideoFile
from finetune.prediction.filmstrip import Filmstrip, clock, guesses
from finetune.prediction.predictor import Predictor, WindowPrediction, predict_windows
from finetune.prediction.reading import Ended
from finetune.prediction.settings import PredictSettings
from finetune.prediction.writers import (
    ClassScore,
    FeatureRows,
    VideoScores,
    WindowScores,
    feature_row,
    features_file,
    features_schema,
)

_ROWS_SHOWN = 30  # windows of a video that are printed
_CLASSES_SHOWN = 10  # of many videos


@dataclass(frozen=True)
class FilePredictions:
    """What a run found."""

    videos: list[VideoScores]
    failed: dict[str, str]  # name -> reason


def predict_files(
    predictor: Predictor,
    videos: list[VideoFile],
    failed: dict[str, str],
    options: PredictSettings,
    console: Console,
) -> FilePredictions:
    """Reads each video once, prints what the model says, and writes features and filmstrips.

    Args:
        failed: What could not be read before, with reasons.

    Raises:
        UserError: no video could be read; no features file is left then.
    """
    reports: list[VideoScores] = []
    failed = dict(failed)
    names = _strip_names(videos)
    with ExitStack() as stack:
        features = None
        if options.features is not None:
            schema = features_schema(str(predictor.folder), predictor.digest)
            features = stack.enter_context(features_file(options.features, schema))
        found = predict_windows(
            predictor,
            videos,
            predictor.reading(options.window_seconds, options.step_seconds, options.crops),
            processes=options.processes,
        )
        for number, items in itertools.groupby(found, key=lambda item: item[0]):
            video = videos[number]
            strip = None if options.filmstrip is None else options.filmstrip / names[number]
            own = (item for _, item in items)
            report = _predict_one(predictor, video, own, options, console, features, strip)
            if isinstance(report, str):
                failed[video.name] = report
                print_line(console, f"\n{video.name}: cannot be read: {report}")
                continue
            reports.append(report)
            if len(videos) == 1 and not options.quiet:
                _show(console, report, predictor.classes)
            elif not (options.quiet or options.output or options.features):
                _show_line(console, report)
            if strip is not None:
                print_line(console, f"written  {strip}")
        if not reports:
            raise UserError(f"nothing could be read:\n  {lines(failed)}")
    if len(videos) > 1 and not options.quiet:
        _summarise(console, reports, failed)
    if features is not None:
        print_line(console, f"written  {options.features}: {features.count:,} rows")
    return FilePredictions(reports, failed)


def _predict_one(
    predictor: Predictor,
    video: VideoFile,
    found: Iterable[WindowPrediction | Ended],
    options: PredictSettings,
    console: Console,
    features: FeatureRows | None,
    strip_file: Path | None,
) -> VideoScores | str:
    """Takes one video, window by window; returns why, if nothing of it can be read."""
    windows: list[WindowScores] = []
    total: NDArray[np.float64] | None = None
    strip = Filmstrip()
    ended: Ended | None = None
    for window in _with_progress(found, video.name, console):
        if isinstance(window, Ended):
            ended = window
            continue
        seen = window.seen
        if features is not None:
            features.add(feature_row(video.name, video.path, window))
        top = _top(seen.probabilities, predictor.classes, options.top)
        windows.append(WindowScores(window.start_seconds, window.end_seconds, top))
        if seen.probabilities is not None:
            total = seen.probabilities + (0.0 if total is None else total)
        if seen.picture is not None:
            strip.add(windows[-1], seen.picture)
    assert ended is not None
    if ended.failure is not None:
        return ended.failure
    average = None if total is None else total / len(windows)
    report = VideoScores(
        video=video.name,
        seconds=ended.frames / ended.rate,
        fps=ended.rate,
        frames=ended.frames,
        width=ended.size[0],
        height=ended.size[1],
        notes=ended.notes,
        top=_top(average, predictor.classes, options.top),
        windows=windows,
    )
    if strip_file is not None:
        strip.write(report, strip_file)
    return report


def _with_progress(
    found: Iterable[WindowPrediction | Ended], name: str, console: Console
) -> Iterator[WindowPrediction | Ended]:
    """Yields the windows; a terminal shows meanwhile how far into the video they reach."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(name, total=None)
        for item in found:
            if isinstance(item, WindowPrediction):
                bar.update(task, description=f"{name}: {clock(item.end_seconds)}")
            yield item


def _show(console: Console, video: VideoScores, classes: list[str]) -> None:
    """Prints a video's table: a row for each window, the mean over all at the end."""
    size = f"{video.width} x {video.height}"
    count = "1 window" if len(video.windows) == 1 else f"{len(video.windows):,} windows"
    print_line(
        console,
        f"\n{video.video}: {clock(video.seconds)}, {count}, "
        f"seen as {size} at {video.fps:.4g} frames/s",
    )
    for note in video.notes:
        print_line(console, f"  {note}")
    if not classes:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("from", justify="right")
    table.add_column("to", justify="right")
    table.add_column("likeliest")
    every = max(1, math.ceil(len(video.windows) / _ROWS_SHOWN))
    for window in video.windows[::every]:
        times = clock(window.start_seconds), clock(window.end_seconds)
        table.add_row(*times, Text(guesses(window.top)))
    table.add_row("", "all", Text(guesses(video.top), "bold"), end_section=True)
    console.print(table)
    if every > 1:
        print_line(console, f"  (one window of {every} is shown; --output FILE writes all)")


def _show_line(console: Console, video: VideoScores) -> None:
    """Prints a line for one of many videos."""
    count = "1 window" if len(video.windows) == 1 else f"{len(video.windows):,} windows"
    notes = "".join(f"; {note}" for note in video.notes)
    said = guesses(video.top[:1]) or "no classes"
    print_line(console, f"{video.video}  {said}  ({clock(video.seconds)}, {count}{notes})")


def _summarise(console: Console, reports: list[VideoScores], failed: dict[str, str]) -> None:
    """Prints how many videos there were, and how often each class was the likeliest."""
    seconds = sum(report.seconds for report in reports)
    windows = sum(len(report.windows) for report in reports)
    print_line(
        console,
        f"\nall      {len(reports):,} videos, {clock(seconds)}, {windows:,} windows; "
        f"{len(failed):,} could not be read",
    )
    likeliest = Counter(report.top[0].class_name for report in reports if report.top)
    named = [f"{name} {count:,}" for name, count in likeliest.most_common(_CLASSES_SHOWN)]
    if likeliest:
        more = ", ..." if len(likeliest) > _CLASSES_SHOWN else ""
        print_line(console, f"likeliest {', '.join(named)}{more}")


def _top(
    probabilities: NDArray[np.float64] | None, classes: list[str], count: int
) -> list[ClassScore]:
    if probabilities is None:
        return []
    order = (-probabilities).argsort(kind="stable")[:count]
    return [ClassScore(classes[i], float(probabilities[i])) for i in order]


def _strip_names(videos: list[VideoFile]) -> list[str]:
    """Returns a different PNG name for each video."""
    names: list[str] = []
    for video in videos:
        stem = Path(video.name).name
        number, name = 1, f"{stem}.png"
        while name in names:
            number += 1
            name = f"{stem}-{number}.png"
        names.append(name)
    return names


def lines(failed: dict[str, str]) -> str:
    """Returns videos that failed, with reasons, one a line."""
    return "\n  ".join(f"{name}: {why}" for name, why in failed.items())


def print_line(console: Console, text: str) -> None:
    """Prints a line as it is: names may hold what rich would take for markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
