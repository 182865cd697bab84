"""Trainings on two ranks in processes of their own, without Ray."""

from __future__ import annotations

import multiprocessing
import queue
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dynamonet.tracking.runs import TrackedRun
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.logs.console import Progress
from dynamonet.training.task import Job, Task
from dynamonet.training.trainer import Trainer


def on_two_ranks(
    task: Task[Any], run: TrackedRun, home: Path, meddle: Callable[[Trainer], None]
) -> list[str]:
    """Trains a task on two ranks; returns what each ended with, empty where it came to its end.

    Args:
        meddle: A function of a module, called with each rank's training before it starts.
    """
    words = (task, run, home, meddle)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_train, range(2), [words] * 2, timeout=240))


def _train(index: int, words: tuple[Task[Any], TrackedRun, Path, Any]) -> str:
    task, run, home, meddle = words
    torch.set_num_threads(1)
    meeting = f"file://{home}/.meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=index, world_size=2)
    messages: queue.Queue[Any] = queue.Queue()
    job = Job(task, run, {}, Progress(messages), None, home, 0, 1)  # type: ignore[arg-type]
    try:
        training = Trainer(job, Rank(index, 2, torch.device("cpu")))
        meddle(training)
        training.run()
    except Exception as error:
        return str(error) or traceback.format_exc()
    finally:
        dist.destroy_process_group()
    return ""
