"""Driver side of a training stage: tracking, resume, Ray Train, the finished model."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from dynamonet import cluster
from dynamonet.errors import Stopped, UserError, find_user_error
from dynamonet.model.files import MODEL
from dynamonet.shards.settings import default_processes
from dynamonet.tracking.origin import DatasetUse, Origin
from dynamonet.tracking.runs import TrackedRun
from dynamonet.tracking.seen import FILE as TRAINED_ON
from dynamonet.training.checkpoint.state import read_state
from dynamonet.training.checkpoint.store import best, newest
from dynamonet.training.distributed.coordinator import Coordinator
from dynamonet.training.distributed.failures import oom_kills
from dynamonet.training.distributed.resources import worker_resources
from dynamonet.training.distributed.signals import GRACE_SECONDS, StopSignals
from dynamonet.training.logs.console import ConsoleLog, Progress
from dynamonet.training.perf.allocator import KEPT
from dynamonet.training.run_folder import RunState, working_on
from dynamonet.training.task import Job, Task
from dynamonet.training.worker import MEMORY, train_worker

MAX_TRIES = 30  # of a minute each, to find the workers' resources while the run goes on


@dataclass(frozen=True)
class TrainingResult:
    """A training that reached its last step."""

    model: Path
    run: TrackedRun
    folder: Path


def launch(
    stage: str,
    subject: str,
    task: Task[Any],
    *,
    parents: list[Origin],
    datasets: list[DatasetUse],
    console: Console,
    above: TrackedRun | None = None,
) -> TrainingResult:
    """Trains a task to its end on Ray Train, resuming an unfinished run of the same settings.

    Args:
        subject: Begins the name of a new run, e.g. the data set's.
        parents: The runs that made what this one builds on.
        above: The run below which a new one stands in the tracking store.

    Raises:
        UserError: the resources are not there, the run's name is taken by another run, or
            something the user can fix stopped the training.
    """
    task.check()
    with working_on(stage, subject, task, parents=parents, datasets=datasets, above=above) as work:
        folder, state, run = work.folder, work.state, work.run
        if work.finished:
            console.print(f"already  run {state.name} is finished; use another --name to run again")
            return TrainingResult(folder / MODEL, run, folder)
        console.print(f"run      {folder}", soft_wrap=True)
        with StopSignals() as signals:
            if not (folder / TRAINED_ON).is_file():  # a resumed run has it
                task.trained_on().write(folder)
            _fit(task, folder, state, console, signals)
            _check_end(folder, console, signals)
            best_by = task.best_by() if task.keeps_best() else None
            _keep_model(folder, run, best_by)
        return TrainingResult(folder / MODEL, run, folder)


def _fit(
    task: Task[Any], folder: Path, state: RunState, console: Console, signals: StopSignals
) -> None:
    settings = task.settings
    # how often Ray's controller looks after its workers; its 2 s would be spent at start and end
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # else Ray's own barriers wait for a lost worker without end
    timeout = str(settings.collective_timeout_seconds)
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", timeout)
    with cluster.connected():
        signals.install()  # Ray sets its own
        scaling, cpus = worker_resources(settings, cluster.nodes())
        log, coordinator = ConsoleLog(console), Coordinator.start()
        processes = settings.loader.processes
        if processes is None:
            processes = default_processes(cpus)
        job = Job(
            task=task,
            run=TrackedRun(**state.mlflow),
            origin=state.origin,
            progress=Progress(log.queue),
            coordinator=coordinator,
            home=folder,
            processes=processes,
            # beside a GPU little is computed here, and threads that compete with the loader
            # processes wait for each other (measured on 16 cores: 323 ms a step instead of 68)
            threads=max(1, cpus - processes) if scaling.use_gpu else cpus,
        )
        trainer = TorchTrainer(
            train_worker,
            # as bytes, so that Ray's controller need not import torch and all to look at it
            train_loop_config={"job": pickle.dumps(job)},
            scaling_config=scaling,
            torch_config=TorchConfig(
                backend="nccl" if scaling.use_gpu else "gloo",
                timeout_s=settings.collective_timeout_seconds,
            ),
            run_config=ray.train.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                worker_runtime_env={"env_vars": KEPT},
                failure_config=ray.train.FailureConfig(
                    max_failures=settings.max_restarts, controller_failure_limit=MAX_TRIES
                ),
            ),
        )
        with log.line.shown():
            _fit_while_printing(trainer, log, coordinator, signals)


def _fit_while_printing(
    trainer: TorchTrainer, log: ConsoleLog, coordinator: Coordinator, signals: StopSignals
) -> None:
    """Runs the trainer in a thread, so that this one can print and take signals.

    Raises:
        UserError: what a worker ended with, or that workers were lost too often.
        Stopped: the workers did not come to an end in time after a signal.
    """
    trouble: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    signals.training, told = True, False
    while thread.is_alive():
        log.follow(0.5)
        if signals.asked is not None and not told:
            told = True
            coordinator.request_stop()
            log.console.print(
                f"stopping after this step, with a checkpoint; within {GRACE_SECONDS} s. "
                "Send the signal again to stop at once."
            )
        signals.check()
    log.drain()
    signals.training = False
    failure = coordinator.failure()
    if failure is not None:
        raise failure
    if trouble:
        raise _explained(trouble[0], coordinator)


def _explained(error: BaseException, coordinator: Coordinator) -> BaseException:
    """Returns what to raise when Ray gave up: a mistake of the user's, or which worker was lost."""
    if find_user_error(error) is not None or not isinstance(error, ray.train.TrainingFailedError):
        return error
    lines = str(error).strip().splitlines()
    host = socket.gethostname()
    ended = coordinator.new_oom_kills(host, oom_kills())
    memory = f"{MEMORY.format(ended=ended, host=host)}. " if ended else ""
    return UserError(
        f"workers failed or were lost more often than max_restarts allows. {memory}"
        f"Workers: {coordinator.describe_lagging()}. Ray says: {lines[-1] if lines else error}\n"
        "Run the same command again to continue from the last checkpoint."
    )


def _check_end(folder: Path, console: Console, signals: StopSignals) -> None:
    """Raises what a training that is not at its last step ended with.

    Raises:
        Stopped: a signal asked for it.
        UserError: there is no checkpoint.
    """
    last = newest(folder)
    state = read_state(last) if last else None
    if signals.asked is None and state is not None and state.step >= state.total_steps:
        return
    if signals.asked is not None:  # also where only the last measurement was broken off
        if state is not None:
            console.print(
                f"stopped  after step {state.step:,} of {state.total_steps:,}: {last}",
                soft_wrap=True,
            )
        raise Stopped(signals.asked)
    raise UserError(f"{folder}: the training ended without its last checkpoint")


def _keep_model(folder: Path, run: TrackedRun, best_by: str | None) -> None:
    """Copies the finished model, whole, out of the last checkpoint or the best one; logs it."""
    source = best(folder, best_by) or newest(folder)
    assert source is not None
    growing = folder / f".{MODEL}"
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir()
    for file in source.glob("model.*"):
        shutil.copy2(file, growing / file.name)
    shutil.copy2(folder / TRAINED_ON, growing)
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    growing.rename(folder / MODEL)
    try:
        run.log_folder(folder / MODEL, MODEL)
    except Exception as error:  # MLflow's own, SQLAlchemy's, requests' and others
        raise UserError(
            f"the model is whole in {folder / MODEL}, but the tracking store {run.uri} "
            f"rejected it: {error}\nThe same command sends it when the store is back."
        ) from error
