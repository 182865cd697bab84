"""Driver side of a training stage: run folder, resume, resources, Ray Train, the finished model.

<runs>/<stage>/<name>/
  run.json          settings digest, MLflow run, origin, status: running, finished ...
  settings.yaml     the complete settings
  step-00000200/    checkpoints, kept by Ray Train
  model/            the finished model
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pickle
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from rich.console import Console

from dynamonet import cluster, tracking
from dynamonet.errors import UserError
from dynamonet.origin import DatasetUse, Origin
from dynamonet.settings import flatten, to_yaml
from dynamonet.storage import is_uri
from dynamonet.tracking import TrackedRun
from dynamonet.training.console import ConsoleLog, Progress
from dynamonet.training.loop import Job, Task, train_worker
from dynamonet.training.settings import TrainSettings

RUN_FILE, MODEL = "run.json", "model"
MOST_PROCESSES = 16  # one decodes about 250 clips/s, so more than these would only take memory
# what may change between a run and its resumption without making it another run
FREE_KEYS = frozenset(
    "name runs shards_root experiment num_workers device cpus_per_worker resume log_every_steps "
    "keep_checkpoints checkpoint_every_steps loader.processes loader.prefetch_batches "
    "loader.cache_gb".split()
)


@dataclass
class RunState:
    """What run.json holds."""

    stage: str
    name: str
    settings_digest: str
    status: str
    mlflow: dict[str, str]
    dataset_digests: list[str]
    origin: dict[str, Any] = field(default_factory=dict)


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
    home = _stage_folder(settings, stage)
    with _claim(home, stage, subject, settings, datasets) as (folder, state):
        if state.status == "finished":
            console.print(f"already  run {state.name} is finished; another --name starts anew")
            return Finished(folder / MODEL, TrackedRun(**state.mlflow), folder)
        run = _tracked(stage, state, folder, settings, parents, datasets)
        state.mlflow = asdict(run)
        if not state.origin:  # a resumed run keeps how it began
            state.origin = run.origin(stage, str(folder), datasets, parents).to_json()
        _write_state(folder, state, "running")
        (folder / "settings.yaml").write_text(to_yaml(settings), "utf-8")
        console.print(f"run      {folder}", soft_wrap=True)
        try:
            with tracking.closing(run):
                result = _fit(task, folder, state, console)
                _keep_model(result, folder, run)
        except KeyboardInterrupt:
            _write_state(folder, state, "stopped")
            raise
        except BaseException:
            _write_state(folder, state, "failed")
            raise
        _write_state(folder, state, "finished")
        return Finished(folder / MODEL, run, folder)


def _stage_folder(settings: TrainSettings, stage: str) -> Path:
    runs = settings.runs_path()
    if is_uri(runs):
        raise UserError(f"--runs {runs}: results of a training must lie on a mounted file system")
    folder = Path(runs) / stage
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made: {error.strerror}; name another --runs"
        ) from None
    return folder


def settings_digest(settings: TrainSettings) -> str:
    """Returns a digest of the settings that make a training what it is."""
    kept = {key: value for key, value in flatten(settings).items() if key not in FREE_KEYS}
    return hashlib.blake2b(json.dumps(kept, default=str).encode(), digest_size=8).hexdigest()


@contextmanager
def _claim(
    home: Path, stage: str, subject: str, settings: TrainSettings, datasets: list[DatasetUse]
) -> Iterator[tuple[Path, RunState]]:
    """Finds the run to resume or makes a new one, and holds its lock."""
    digest, digests = settings_digest(settings), [use.digest for use in datasets]
    for folder in _candidates(home, settings):
        state = _read_state(folder)
        same = state.settings_digest == digest and state.dataset_digests == digests
        if settings.name is not None and not same:
            raise UserError(
                f"--name {settings.name}: {folder} was made with other settings or data; "
                "choose another name, or the settings it was made with"
            )
        wanted = settings.resume and (state.status != "finished" or settings.name is not None)
        if not same or not wanted:
            continue
        with _lock(folder) as free:
            if free:
                yield folder, _read_state(folder)
                return
            if settings.name is not None:
                raise UserError(f"{folder}: this run is going on in another process")
    name = settings.name or f"{subject}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = _fresh_folder(home, name, named=settings.name is not None)
    state = RunState(stage, folder.name, digest, "running", {}, digests)
    _write_state(folder, state, "running")
    with _lock(folder):
        yield folder, state


def _candidates(home: Path, settings: TrainSettings) -> list[Path]:
    """Returns folders of runs that might be resumed, the newest first."""
    if settings.name is not None:
        folder = home / settings.name
        return [folder] if (folder / RUN_FILE).is_file() else []
    return sorted((f.parent for f in home.glob(f"*/{RUN_FILE}")), key=_age, reverse=True)


def _age(folder: Path) -> float:
    return (folder / RUN_FILE).stat().st_mtime


def _fresh_folder(home: Path, name: str, *, named: bool) -> Path:
    for suffix in ("", *(f"-{n}" for n in range(2, 100))):
        folder = home / f"{name}{suffix}"
        try:
            folder.mkdir()
        except FileExistsError:
            if named:
                raise UserError(f"{folder}: taken by another run; choose another --name") from None
            continue
        return folder
    raise UserError(f"{home}: too many runs named {name}")


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Holds a run's lock while its driver lives; the system lets go of it when the driver dies."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _read_state(folder: Path) -> RunState:
    try:
        return RunState(**json.loads((folder / RUN_FILE).read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / RUN_FILE}: damaged: {error}; remove {folder}") from None


def _write_state(folder: Path, state: RunState, status: str) -> None:
    state.status = status
    growing = folder / f".{RUN_FILE}"
    growing.write_text(json.dumps(asdict(state), indent=2) + "\n", "utf-8")
    growing.replace(folder / RUN_FILE)


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


def default_processes(cpus: int) -> int:
    """Returns how many loader processes suit a worker with so many cores."""
    return min(MOST_PROCESSES, max(1, cpus - 1))


def worker_resources(
    settings: TrainSettings, have: Mapping[str, float]
) -> tuple[ray.train.ScalingConfig, int]:
    """Returns what each worker reserves and its number of cores.

    Args:
        have: What the cluster has in all, as `ray.cluster_resources` names it.

    Raises:
        UserError: the cluster does not have what is needed.
    """
    cpus, gpus = int(have.get("CPU", 0)), int(have.get("GPU", 0))
    use_gpu = gpus > 0 if settings.device == "auto" else settings.device == "gpu"
    share = max(1, cpus // settings.num_workers)
    each = settings.cpus_per_worker or (share if not use_gpu else max(1, cpus // max(gpus, 1)))
    wanted = {"CPU": each * settings.num_workers, "GPU": settings.num_workers if use_gpu else 0}
    short = [
        f"{count} {kind} wanted, {int(have.get(kind, 0))} there"
        for kind, count in wanted.items()
        if count > have.get(kind, 0)
    ]
    if short:
        raise UserError(
            f"num_workers = {settings.num_workers} does not fit this cluster: {'; '.join(short)}. "
            "Lower num_workers or cpus_per_worker, or set device to cpu."
        )
    if settings.loader.batch_size % settings.num_workers:
        raise UserError(
            f"loader.batch_size = {settings.loader.batch_size} does not divide by "
            f"num_workers = {settings.num_workers}"
        )
    scaling = ray.train.ScalingConfig(
        num_workers=settings.num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": each}
    )
    return scaling, each


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
