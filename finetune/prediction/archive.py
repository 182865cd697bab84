"""The features of a whole archive, on Ray: decoded on the CPUs of all nodes, the model on GPUs or
CPUs, written in parts.

    videos, segments -> tasks of a few -> clips -> model actors -> windows -> part-00000.parquet

Each part says which videos it has. A run that was stopped or killed goes on with the others; what
could not be read is tried again.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dynamonet import cluster
from dynamonet.child_process import DEFAULT_LIMITS, ChildFailed, stream
from dynamonet.errors import UserError
from dynamonet.model.numbers import NUMBERS
from dynamonet.storage import atomic_file
from finetune.prediction.parts import PART_SECONDS, READING, Parts
from finetune.prediction.predictor import ClipPrediction, Predictor, WindowPrediction, windows_of
from finetune.prediction.reading import CutClip, Ended, Reading, VideoClips
from finetune.prediction.segments import Segment, Unit, find_units, name_of
from finetune.prediction.settings import PredictSettings
from finetune.prediction.writers import feature_row, features_schema

UNITS_A_TASK = 16
BLOCK_BYTES = 32 << 20  # of clips that wait for the model together
FAILED = "failed.csv"
NOTHING = -1  # start of a clip that stands for a video without any


@dataclass
class Embedded:
    """What a run over an archive found."""

    done_before: int  # videos and segments
    done: int = 0
    windows: int = 0  # of this run
    damaged: int = 0  # of which only a part could be decoded
    failed: dict[str, str] = field(default_factory=dict)  # name -> reason


def embed(options: PredictSettings, console: Console) -> Embedded:
    """Writes the features of all videos and segments that are not in the folder yet.

    Raises:
        UserError: nothing to read, or the folder holds the features of another model or of other
            windows.
    """
    folder = options.features
    assert folder is not None
    units, failed = find_units(list(options.videos))
    if not units:
        reasons = "\n  ".join(f"{name}: {why}" for name, why in failed.items())
        raise UserError(f"no video to read:\n  {reasons}")
    predictor = Predictor.of(options)
    reading = predictor.reading(options.window_seconds, options.step_seconds, options.crops)
    facts = {READING: json.dumps(_depends_on(reading), sort_keys=True)}
    schema = features_schema(str(predictor.folder), predictor.digest, facts)
    how = f"{predictor.precision}, {predictor.clip_text()}"
    console.print(f"model    {predictor.folder} in {how}", soft_wrap=True, highlight=False)
    with Parts.opened(folder, schema, anew=options.overwrite) as parts:
        left = [unit for unit in units if name_of(unit) not in parts.done]
        there = f", {len(units) - len(left):,} of them are there" if len(left) < len(units) else ""
        console.print(f"archive  {len(units):,} videos and segments{there}", highlight=False)
        found = Embedded(len(units) - len(left), failed=dict(failed))
        if left:
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it warns of its actors
            with cluster.connected():
                clips = _clips(left, reading, options)
                done = _by_unit(clips, reading, _widths(predictor))
                _write(left, done, parts, found, console)
    _write_failed(folder / FAILED, found.failed)
    return found


def _depends_on(reading: Reading) -> dict[str, Any]:
    """Returns what a window's features depend on beside the model."""
    windows = {k: getattr(reading, k) for k in ("window_seconds", "step_seconds", "crops")}
    frames, clips = (each.model_dump(mode="json") for each in (reading.frames, reading.clips))
    return {"frames": frames, "clips": clips, **windows}


def _write(
    units: Sequence[Unit],
    looked_at: Iterator[tuple[int, dict[str, Any], list[WindowPrediction]]],
    parts: Parts,
    found: Embedded,
    console: Console,
) -> None:
    """Writes the windows of units as they are done, and tells how fast and how far."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    began = told = time.monotonic()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(units))
        for done, (number, ended, windows) in enumerate(looked_at, 1):
            unit = units[number]
            if ended["failure"]:
                found.failed[name_of(unit)] = ended["failure"]
            else:
                begins = unit.begins if isinstance(unit, Segment) else 0.0
                rows = [feature_row(unit.name, unit.path, each, begins) for each in windows]
                parts.add(name_of(unit), rows)
                found.done, found.windows = found.done + 1, found.windows + len(rows)
                found.damaged += bool(ended["damage"])
            now = time.monotonic()
            speed = found.windows / (now - began)
            progress.update(bar, completed=done, description=f"{speed:,.1f} windows/s")
            if not console.is_terminal and now - told > PART_SECONDS:
                told = now
                minutes = (now - began) / 60 * (len(units) - done) / done
                line = f"{done:,} of {len(units):,}, {speed:,.1f} windows/s"
                console.print(f"         {line}, about {minutes:,.0f} minutes left")


def _clips(
    units: Sequence[Unit], reading: Reading, options: PredictSettings
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yields what the model sees in the clips of all units, in the order in which they are done."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # else it tells of its plans
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    gpus = int(ray.cluster_resources().get("GPU", 0)) if options.device != "cpu" else 0
    # without GPUs both steps have the same resources, and Ray runs them in one process a core
    size = gpus or cluster.num_cpus()
    firsts = range(0, len(units), UNITS_A_TASK)
    tasks = [{"first": n, "units": list(units[n : n + UNITS_A_TASK])} for n in firsts]
    data: Any = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    words = {"reading": reading, "together": options.batch_size}
    cut = data.map_batches(_cut, batch_size=1, num_cpus=1, fn_kwargs=words)
    seen = cut.map_batches(
        _Model,
        batch_size=None,  # as they come
        fn_constructor_args=(options,),
        compute=ray.data.ActorPoolStrategy(size=min(size, len(tasks))),
        num_cpus=1,
        num_gpus=1 if gpus else None,
    )
    yield from seen.iter_batches(batch_size=None, batch_format="numpy")


def _cut(
    batch: dict[str, NDArray[Any]], reading: Reading, together: int
) -> Iterator[dict[str, NDArray[Any]]]:
    """Reads the units of a task, so many clips together."""
    rows = _rows(list(batch["units"][0]), int(batch["first"][0]), reading)
    while held := list(islice(rows, together)):
        yield {name: np.stack([row[name] for row in held]) for name in held[0]}


def _rows(units: list[Unit], first: int, reading: Reading) -> Iterator[dict[str, Any]]:
    """Yields the clips of some units; the last clip of each says how it ended.

    Each is read in a child process, which a file may kill or keep busy without end.
    """
    side = reading.frame_px
    nothing = np.zeros((reading.num_frames, reading.crops * side, side, 3), np.uint8)
    for number, unit in enumerate(units, first):
        about: dict[str, Any] = {"failure": None, "clips": 0}
        held: tuple[int, NDArray[np.uint8]] | None = None  # until it is known whether more come
        try:
            for message in stream(_messages, unit, reading, limits=DEFAULT_LIMITS):
                if isinstance(message, Ended):
                    about["failure"], about["damage"] = message.failure, len(message.damage)
                    about["frames"], about["rate"] = message.frames, message.rate
                    continue
                if held is not None:
                    yield _row(number, *held, "")
                held = message
                about["clips"] += 1
        except ChildFailed as error:
            about["failure"] = str(error)
        yield _row(number, *(held or (NOTHING, nothing)), json.dumps(about))


def _messages(unit: Unit, reading: Reading) -> Iterator[tuple[int, NDArray[np.uint8]] | Ended]:
    """Yields the first frame and the pixels of each clip of a unit, then how it ended."""
    torch.set_num_threads(1)
    for message in VideoClips([unit], reading):
        if isinstance(message, CutClip):
            yield message.start, message.pixels.numpy()  # tensors do not go through pipes
        elif isinstance(message, Ended):
            yield message


def _row(number: int, start: int, pixels: NDArray[np.uint8], ended: str) -> dict[str, Any]:
    return {"unit": number, "start": start, "pixels": pixels, "ended": ended}


def _widths(predictor: Predictor) -> tuple[int, int, int]:
    """Returns how many features, values of the DMR and numbers of motion a clip has."""
    model = predictor.model
    tells = model.config.tells_motion
    return model.trunk.dim, model.motion.dmr_dim * tells, len(NUMBERS) * tells


class _Model:
    """The model in a process of its own."""

    def __init__(self, options: PredictSettings) -> None:
        self.predictor = Predictor.of(options)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Puts what the model sees in place of the pixels: its parts side by side."""
        pixels, starts = batch.pop("pixels"), batch["start"]
        there = np.flatnonzero(starts != NOTHING)
        seen = np.zeros((len(starts), sum(_widths(self.predictor))), np.float32)
        size = self.predictor.batch_size
        for some in (there[i : i + size] for i in range(0, len(there), size)):
            clips = [CutClip(0, int(starts[i]), 0, torch.tensor(pixels[i])) for i in some]
            for i, found in zip(some, self.predictor.look(clips), strict=True):
                seen[i] = np.concatenate([found.features, found.dmr, found.motion])
        return {**batch, "seen": seen}


def _by_unit(
    batches: Iterator[dict[str, NDArray[Any]]], reading: Reading, widths: tuple[int, int, int]
) -> Iterator[tuple[int, dict[str, Any], list[WindowPrediction]]]:
    """Yields each unit's number, how it ended and its windows, once all of its clips are there."""
    clips: dict[int, list[tuple[int, ClipPrediction]]] = {}
    ended: dict[int, dict[str, Any]] = {}
    for batch in batches:
        columns = (batch[name] for name in ("unit", "start", "ended", "seen"))
        for unit, start, told, seen in zip(*columns, strict=True):
            number = int(unit)
            own = clips.setdefault(number, [])
            if start != NOTHING:
                parts = np.split(seen, np.cumsum(widths)[:-1])
                own.append((int(start), ClipPrediction(None, *parts, picture=None)))
            if told:
                ended[number] = json.loads(str(told))
            about = ended.get(number)
            if about is not None and len(own) == about["clips"]:
                found = dict(clips.pop(number))
                del ended[number]
                windows = []
                if not about["failure"]:
                    windows = windows_of(found, about["frames"], about["rate"], reading)
                yield number, about, windows


def _write_failed(file: Path, failed: dict[str, str]) -> None:
    """Writes what could not be read, with reasons; removes the file where there is nothing."""
    if not failed:
        file.unlink(missing_ok=True)
        return
    with atomic_file(file) as growing, growing.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("video", "reason"), *failed.items()])
