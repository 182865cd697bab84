"""A finished model on a part of a labelled set, in this process, tracked as a run of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dynamonet.digest import digest_of_bytes
from dynamonet.errors import UserError
from dynamonet.model.files import MODEL
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.rows import RowSet
from dynamonet.shards.shard_set import ShardSet
from dynamonet.tracking.runs import TrackedRun, closing, start_run
from dynamonet.training.logs.buffered import BufferedLogger
from dynamonet.training.logs.metrics import Evaluation
from dynamonet.training.measuring import Measuring
from dynamonet.training.run_folder import stage_folder
from finetune.evaluation import protocol
from finetune.evaluation.evaluator import ViewPlan, evaluate_test, predict_videos, views_line
from finetune.evaluation.finished import FinishedModel
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
    model = FinishedModel(
        settings.model,
        pixel_scale=settings.pixel_scale,
        device=settings.device,
        precision=settings.precision,
    )
    shards = ShardSet.open(settings.shards_path(settings.shards))
    place = shards.folder.path
    known = known_classes(model, shards)
    rows = shards.rows(split=settings.split, part=settings.part)
    if not len(rows):
        raise UserError(f"{place}: split {settings.split} has no {settings.part} video")
    part = MeasuredPart.of(shards, rows, settings.part, settings.split)
    seen = find_seen(model.found, shards, rows.numbers())
    if not settings.allow_seen_test_videos:
        seen.refuse(part.videos, str(model.folder))
    console.print(f"model    {model.folder} on {model.device} in {model.precision}", soft_wrap=True)
    console.print(f"shards   {place}: {part.videos:,} videos", soft_wrap=True)

    views = ViewPlan.of(shards, settings.clips, settings.crops)
    home, run = begin(settings, model, shards)
    about = f"{model.digest} {views}".encode()
    run.tag(**{TEST_PART: part.digest, TEST_SETTINGS: digest_of_bytes(about)})
    with closing(run), BufferedLogger(run, home) as log:
        found = test(model, shards, rows, known, views, settings)
        log.evaluation(0, found)
    told = Protocol(
        test=part,
        times=Times.of(run),
        views=views_line(model.config.num_frames, views),
        recipe="a finished model",
        train_videos=None,
        chosen="as it was kept",
        seed="",
        start=str(model.folder),
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


def known_classes(model: FinishedModel, shards: ShardSet) -> NDArray[np.int64]:
    """Returns the model's number of each of a set's classes.

    Raises:
        UserError: the model has no classes, or does not know one of the set's.
    """
    if not model.classes:
        raise UserError(f"{model.folder}: this model has no classifier; expected a fine-tuned one")
    if not shards.classes:
        raise UserError(f"{shards.folder.path}: these shards have no labels")
    unknown = [name for name in shards.classes if name not in model.classes]
    if unknown:
        raise UserError(
            f"{model.folder} does not know {len(unknown)} of the {len(shards.classes)} classes of "
            f"{shards.folder.path}: {', '.join(unknown[:5])}; its own are "
            f"{', '.join(model.classes[:5])}{', ...' if len(model.classes) > 5 else ''}"
        )
    return np.array([model.classes.index(name) for name in shards.classes])


def begin(
    settings: MeasureSettings, model: FinishedModel, shards: ShardSet
) -> tuple[Path, TrackedRun]:
    """Makes the folder of a measurement, and its run in the tracking store.

    Raises:
        UserError: the name is taken.
    """
    folder = model.folder
    subject = folder.parent.name if folder.name == MODEL else folder.name
    name = settings.name or f"{subject}-{time.strftime('%Y%m%d-%H%M%S')}"
    home = stage_folder(settings, "measure") / name
    if home.exists():
        raise UserError(f"{home}: taken by another measurement; choose another --name")
    made_by = [origin.id for origin in (model.found.origin, shards.origin) if origin]
    used = [shards.use("evaluation")]
    run = start_run("measure", name, settings, results=str(home), parents=made_by, datasets=used)
    home.mkdir()
    return home, run


def test(
    model: FinishedModel,
    shards: ShardSet,
    rows: RowSet,
    known: NDArray[np.int64],
    views: ViewPlan,
    settings: MeasureSettings,
) -> Evaluation:
    """Measures some rows of a set, cut as the model's training cut them.

    Args:
        known: The model's number of each of the set's classes.
    """
    config = model.config
    reader = ClipReader(
        shards,
        rows,
        model.clips,
        num_frames=config.num_frames + config.frames_beyond,  # where training's test cuts them
        frame_px=config.frame_px,
        loop_short=True,
    )
    alone = Measuring.alone(model.device, model.precision, settings.batch_size, settings.processes)
    predictions = predict_videos(model.model, reader, shards, views, alone)
    predictions = replace(predictions, labels=known[predictions.labels])
    return evaluate_test(predictions, reader, shards, model.classes, model.model)
