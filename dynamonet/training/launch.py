"""Driver side of a training stage: tracking, resume, Ray Train, the finished model."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from dynamonet import cluster, tracking
from dynamonet.errors import UserError
from dynamonet.origin import DatasetUse, Origin
from dynamonet.settings import to_yaml
from dynamonet.tracking import TrackedRun
from dynamonet.training.console import ConsoleLog, Progress
from dynamonet.training.loop import train_worker
from dynamonet.training.resources import default_processes, worker_resources
from dynamonet.training.run_folder import MODEL, RunState, claim, stage_folder, write_state
from dynamonet.training.settings import TrainSettings
from dynamonet.training.task import Job, Task


@dataclass(frozen=True)
class Finished:
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
) -> Finished:
    """Trains a task to its end on Ray Train, resuming an unfinished run of the same settings.

    Args:
        subject: Begins the name of a new run, e.g. the data set's.
        parents: The runs that made what this one builds on.

    Raises:
        UserError: the resources are not there, the run's name is taken by another run, or
            something the user can mend stopped the training.
    """
    settings = task.settings
    task.check()
    home = stage_folder(settings, stage)
    with claim(home, stage, subject, settings, datasets) as (folder, state):
        if state.status == "finished":
            console.print(f"already  run {state.name} is finished; another --name starts anew")
            return Finished(folder / MODEL, TrackedRun(**state.mlflow), folder)
        run = _tracked(stage, state, folder, settings, parents, datasets)
        state.mlflow = asdict(run)
        if not state.origin:  # a resumed run keeps how it began
            state.origin = run.origin(stage, str(folder), datasets, parents).to_json()
        write_state(folder, state, "running")
        (folder / "settings.yaml").write_text(to_yaml(settings), "utf-8")
        console.print(f"run      {folder}", soft_wrap=True)
        try:
            with tracking.closing(run):
                result = _fit(task, folder, state, console)
                _keep_model(result, folder, run)
        except KeyboardInterrupt:
            write_state(folder, state, "stopped")
            raise
        except BaseException:
            write_state(folder, state, "failed")
            raise
        write_state(folder, state, "finished")
        return Finished(folder / MODEL, run, folder)


def _tracked(
    stage: str,
    state: RunState,
    folder: Path,
    settings: TrainSettings,
    parents: list[Origin],
    datasets: list[DatasetUse],
) -> TrackedRun:
    if state.mlflow:
        run = TrackedRun(**state.mlflow)
        run.reopen()
        return run
    return tracking.start_run(
        stage,
        state.name,
        settings,
        experiment=settings.experiment,
        runs_path=settings.runs_path(),
        results=str(folder),
        parents=[parent.id for parent in parents],
        datasets=datasets,
    )


def _fit(task: Task[Any], folder: Path, state: RunState, console: Console) -> ray.train.Result:
    settings = task.settings
    # how often Ray's controller looks after its workers; its 2 s would be spent at start and end
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    with cluster.connected():
        scaling, cpus = worker_resources(settings, ray.cluster_resources())
        log = ConsoleLog(console)
        processes = settings.loader.processes
        job = Job(
            task=task,
            run=TrackedRun(**state.mlflow),
            origin=state.origin,
            progress=Progress(log.queue),
            processes=default_processes(cpus) if processes is None else processes,
            threads=cpus,
        )
        trainer = TorchTrainer(
            train_worker,
            # as bytes, so that Ray's controller need not import torch and all to look at it
            train_loop_config={"job": pickle.dumps(job)},
            scaling_config=scaling,
            torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
            run_config=ray.train.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=settings.keep_checkpoints),
            ),
        )
        return _fit_while_printing(trainer, log)


def _fit_while_printing(trainer: TorchTrainer, log: ConsoleLog) -> ray.train.Result:
    """Runs the trainer in a thread, so that this one can print and take Ctrl-C."""
    outcome: list[ray.train.Result | BaseException] = []

    def fit() -> None:
        try:
            outcome.append(trainer.fit())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive():
        log.drain(0.5)
    log.drain(0.1)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _keep_model(result: ray.train.Result, folder: Path, run: TrackedRun) -> None:
    """Copies the finished model out of the last checkpoint, whole, and logs it."""
    if result.checkpoint is None:
        raise UserError(f"{folder}: the training ended without a checkpoint")
    growing = folder / f".{MODEL}"
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir()
    with result.checkpoint.as_directory() as source:
        for file in Path(source).glob("model.*"):
            shutil.copy2(file, growing / file.name)
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    growing.rename(folder / MODEL)
    run.log_folder(folder / MODEL, MODEL)
