"""What a fine-tuning would do, told and tried with a few steps; nothing is kept."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from dynamonet.shards.loading import batches
from dynamonet.shards.order import TrainingOrder
from dynamonet.shards.settings import default_processes
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.setup import set_up
from finetune.evaluation.finished import find_device
from finetune.evaluation.protocol import Protocol, Times
from finetune.settings import FinetuneSettings
from finetune.train.experiment import Start
from finetune.train.objective import Finetuning

STEPS = 3  # taken; the first is not counted


def dry_run(starts: Sequence[Start], console: Console) -> None:
    """Says what would be trained and tested, and how long the first run and all take, about."""
    start = starts[0]
    task, settings = start.task, start.task.settings
    told = start.protocol(Times())
    count = len(task.data.classes)
    console.print(f"shards   {task.shards}: {count} classes", soft_wrap=True)
    console.print(f"weights  {start.words()}", soft_wrap=True)
    console.print(f"trains   {_trained(told, settings)}", soft_wrap=True)
    if settings.test:
        console.print(
            f"tests    {told.test.videos} {told.test.part} videos in {told.test.groups} groups of "
            f"split {told.test.split}, {told.views}",
            soft_wrap=True,
        )
    if settings.recipe == "ridge":
        console.print("steps    none: one look at the training clips")
        return
    steps, seconds, memory, parameters = _measured(task)
    limit = settings.max_minutes
    minutes = steps * seconds / 60 if limit is None else limit
    length = f"{steps:,} steps of" if limit is None else f"{limit:g} minutes in steps of"
    console.print(
        f"steps    {length} {settings.loader.batch_size} clips, {seconds:.2f} s each here; "
        f"{parameters / 1e6:.1f} million parameters, {memory / 2**30:.1f} GiB",
        soft_wrap=True,
    )
    count = len(starts)
    total = f"{minutes * count:.1f} for {count} run{'s' if count > 1 else ''}"
    console.print(
        f"[bold]minutes  about {minutes:.1f} a run, {total}[/bold], beside starts and tests; "
        "nothing was kept",
        soft_wrap=True,
    )


def _trained(told: Protocol, settings: FinetuneSettings) -> str:
    keeps = told.chosen and f"keeps {told.chosen}, "
    return f"{settings.recipe} on {told.train_videos} videos, {keeps}seed {told.seed}"


def _measured(task: Finetuning) -> tuple[int, float, int, int]:
    """Returns steps of a run, seconds a step, bytes of memory, and parameters.

    One worker takes the whole batch here.
    """
    device = find_device(task.settings.device)
    with tempfile.TemporaryDirectory() as home:
        setup = set_up(task, Rank(0, 1, device), Path(home))
    order = TrainingOrder(setup.reader.rows, setup.plan, 0, 0, STEPS)
    taken: list[float] = []  # when each step was done
    found = batches(
        setup.reader,
        order,
        processes=min(STEPS, default_processes()),
        prefetch=1,
        pin_memory=device.type == "cuda",
    )
    for step, batch in enumerate(found):
        gradients = setup.train_step.gradients(step, batch)
        setup.train_step.apply(gradients)
        float(gradients.loss)  # waits for the device
        taken.append(time.monotonic())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    seconds = float(np.diff(taken).mean())
    return setup.total_steps, seconds, memory, setup.train_state.parameters
