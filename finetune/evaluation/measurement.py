"""A finished model on a part of a labelled set, in this process, tracked as a run of its own."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from dynamonet.digest import digest_of_bytes
from dynamonet.errors import UserError
from dynamonet.model.files import locate, read_description, weights_digest
from dynamonet.model.network import DynamoNet
from dynamonet.settings import validate
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.rows import RowSet
from dynamonet.shards.settings import ClipSettings, default_processes
from dynamonet.shards.shard_set import ShardSet
from dynamonet.tracking.origin import DatasetUse
from dynamonet.tracking.runs import TrackedRun, closing, start_run
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.logs.buffered import BufferedLogger
from dynamonet.training.measuring import Measuring
from dynamonet.training.numerics.precision import forward_precision
from dynamonet.training.run_folder import stage_folder
from dynamonet.training.start import model_at
from finetune.evaluation import protocol
from finetune.evaluation.classifier import Classes, find_device
from finetune.evaluation.evaluator import ViewPlan, evaluate_test, predict_videos, views_line
from finetune.evaluation.leakage import find_seen
from finetune.evaluation.protocol import (
    TEST_PART,
    TEST_SETTINGS,
    MeasuredPart,
    Protocol,
    Times,
    accuracy,
)
from finetune.evaluation.settings import MeasureSettings


@dataclass(frozen=True)
class Measured:
    """What a measurement found."""

    folder: Path  # with test/predictions.parquet and the like
    run: TrackedRun
    metrics: dict[str, float]
    protocol: Protocol


def measure(settings: MeasureSettings, console: Console) -> Measured:
    """Measures a model, prints its accuracy with all that it depends on, and keeps both.

    Raises:
        UserError: no model or no such set, a class that the model does not know, or videos that it
            was trained on.
    """
    model_place = model_at(locate(settings.model))
    folder = model_place.folder
    shards = ShardSet.open(settings.shards_path(settings.shards))
    rows = shards.rows(split=settings.split, part=settings.part)
    if not len(rows):
        raise UserError(
            f"{shards.folder.path}: split {settings.split} has no {settings.part} video"
        )
    part = MeasuredPart.of(shards, rows, settings.part, settings.split)
    seen = find_seen(model_place, shards, rows.numbers())
    if not settings.allow_seen_test_videos:
        seen.refuse(part.videos, str(folder))
    device = find_device(settings.device)
    model = DynamoNet.from_pretrained(folder).to(device).eval()
    model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    classes = Classes.of(folder, model.config.num_classes)
    known = known_classes(classes, shards, folder)
    precision = forward_precision(model, settings.precision, device)
    processes = settings.processes
    if processes is None:
        processes = default_processes(len(os.sched_getaffinity(0)))
    views = ViewPlan(settings.clips, settings.crops)
    console.print(f"model    {folder} on {device} in {precision}", soft_wrap=True)
    console.print(f"shards   {shards.folder.path}: {part.videos:,} videos", soft_wrap=True)

    subject = folder.parent.name if folder.name == "model" else folder.name
    name = settings.name or f"{subject}-{time.strftime('%Y%m%d-%H%M%S')}"
    home = stage_folder(settings, "measure") / name
    if home.exists():
        raise UserError(f"{home}: taken by another measurement; choose another --name")
    set_name = shards.folder.path.rsplit("/", 1)[-1]
    made_by = [each for each in (model_place.origin, shards.origin) if each]
    run = start_run(
        "measure",
        name,
        settings,
        experiment=settings.experiment,
        runs_path=settings.runs_path(),
        results=str(home),
        parents=[each.id for each in made_by],
        datasets=[DatasetUse(set_name, shards.folder.path, shards.digest, "evaluation")],
    )
    about = f"{weights_digest(folder)} {views}".encode()
    run.tag(**{TEST_PART: part.digest, TEST_SETTINGS: digest_of_bytes(about)})
    home.mkdir()
    reader = reader_of(shards, rows, model, folder)
    with closing(run):
        alone = Measuring(Rank(0, 1, device), precision, settings.batch_size, processes)
        predictions = predict_videos(model, reader, shards, views, alone, classes)
        labels = known[predictions.labels]  # numbered as the model's
        found = evaluate_test(replace(predictions, labels=labels), reader, shards, classes.names)
        with BufferedLogger(run, home) as log:
            log.evaluation(0, found)
    told = Protocol(
        test=part,
        times=Times.of(run),
        views=views_line(model.config.num_frames, views),
        recipe="a finished model",
        train_videos=None,
        chosen="as it was kept",
        seed="",
        start=str(folder),
        seen=str(seen),
    )
    told.write(home)
    metrics = {key.removeprefix("test/"): value for key, value in found.metrics.items()}
    line = f"{accuracy(metrics)}: {protocol.line([told])}"
    run.tag(protocol=line)
    console.print(f"[bold]test     {line}[/bold]", soft_wrap=True)
    console.print(f"written  {home}/test", soft_wrap=True)
    console.print(f"MLflow   {run.ui_command()}", soft_wrap=True)
    return Measured(home, run, metrics, told)


def known_classes(classes: Classes, shards: ShardSet, folder: Path) -> np.ndarray:
    """Returns the model's number of each of a set's classes.

    Raises:
        UserError: the model has no classes, or does not know one of the set's.
    """
    if not classes.names:
        raise UserError(f"{folder}: this model has no classifier; expected a fine-tuned one")
    if not shards.classes:
        raise UserError(f"{shards.folder.path}: these shards have no labels")
    unknown = [name for name in shards.classes if name not in classes.names]
    if unknown:
        raise UserError(
            f"{folder} does not know {len(unknown)} of the {len(shards.classes)} classes of "
            f"{shards.folder.path}: {', '.join(unknown[:5])}; its own are "
            f"{', '.join(classes.names[:5])}{', ...' if len(classes.names) > 5 else ''}"
        )
    return np.array([classes.names.index(name) for name in shards.classes])


def reader_of(shards: ShardSet, rows: RowSet, model: DynamoNet, folder: Path) -> ClipReader:
    """Returns a reader that cuts clips as the model's training did."""
    given = read_description(folder).get("clips", {})
    clips = validate(ClipSettings, given, origin=str(folder))
    config = model.config
    return ClipReader(
        shards,
        rows,
        clips,
        num_frames=config.num_frames + config.frames_beyond,  # where training's test cuts them
        frame_px=config.frame_px,
        loop_short=True,
    )
