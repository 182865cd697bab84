"""A training's folder: which run it holds, who works on it, how far it came.

<runs>/<stage>/<name>/
  run.json          settings digest, MLflow run, origin, status: running, finished ...
  settings.yaml     the complete settings
  step-00000200/    checkpoints, see checkpoint.store
  nonfinite/        steps that were refused, see numerics.nonfinite
  test/             tables of the test, e.g. the predictions for each video
  model/            the finished model
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from dynamonet.errors import UserError
from dynamonet.settings import flatten, to_yaml
from dynamonet.stage import Places
from dynamonet.storage import is_uri
from dynamonet.tracking.origin import DatasetUse, Origin
from dynamonet.tracking.runs import TrackedRun, closing, start_run
from dynamonet.training.settings import TrainSettings
from dynamonet.training.task import Task

logger = logging.getLogger(__name__)
RUN_FILE = "run.json"
# what may change between a run and its resumption without making it another run
FREE_KEYS = frozenset(
    "name runs shards_root experiment num_workers device cpus_per_worker resume log_every_steps "
    "keep_checkpoints profile checkpoint_every_steps checkpoint_every_minutes min_workers "
    "max_restarts collective_timeout_seconds on_nonfinite max_skipped_share loader.processes "
    "loader.prefetch_batches loader.cache_gb loader.decoded_gb "
    "loader.retry_seconds loader.max_failed_share activation_checkpointing".split()
)


class RunStatus(str, Enum):
    """How far a run has come."""

    RUNNING = "running"
    STOPPED = "stopped"  # by a signal
    FAILED = "failed"
    FINISHED = "finished"


@dataclass
class RunState:
    """What run.json holds."""

    stage: str
    name: str
    settings_digest: str
    status: RunStatus
    mlflow: dict[str, str]
    dataset_digests: list[str]
    origin: dict[str, Any] = field(default_factory=dict)


def stage_folder(settings: Places, stage: str) -> Path:
    """Returns the folder of a stage's runs, made if missing.

    Raises:
        UserError: it is remote, or cannot be made.
    """
    runs = settings.runs_path()
    if is_uri(runs):
        raise UserError(f"--runs {runs}: results of a training must be on a mounted file system")
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
    text = json.dumps(kept, sort_keys=True, default=str)  # whatever order they are declared in
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Work:
    """A run that is worked on."""

    folder: Path
    state: RunState
    run: TrackedRun
    finished: bool  # before; nothing is left to do


@contextmanager
def working_on(
    stage: str,
    subject: str,
    task: Task[Any],
    *,
    parents: list[Origin],
    datasets: list[DatasetUse],
    above: TrackedRun | None = None,
) -> Iterator[Work]:
    """Finds a task's run or makes a new one, and notes in its folder and in MLflow how it ends.

    Args:
        subject: Begins the name of a new run, e.g. the data set's.
        parents: The runs that made what this one builds on.
        above: The run below which a new one stands in the tracking store.

    Raises:
        UserError: the run's name is taken by another run.
    """
    settings = task.settings
    home = stage_folder(settings, stage)
    with acquire_run(home, stage, subject, settings, datasets) as (folder, state):
        if state.status == RunStatus.FINISHED:
            yield Work(folder, state, TrackedRun(**state.mlflow), finished=True)
            return
        if state.mlflow:
            run = TrackedRun(**state.mlflow)
            run.reopen()
        else:
            run = _new_run(stage, state, folder, task, parents, datasets, above)
            state.mlflow = asdict(run)
        if not state.origin:  # a resumed run keeps how it began
            state.origin = run.origin(stage, str(folder), datasets, parents).to_json()
        write_state(folder, state, RunStatus.RUNNING)
        (folder / "settings.yaml").write_text(to_yaml(settings), "utf-8")
        try:
            with closing(run):
                yield Work(folder, state, run, finished=False)
        except KeyboardInterrupt:
            write_state(folder, state, RunStatus.STOPPED)
            raise
        except BaseException:
            write_state(folder, state, RunStatus.FAILED)
            raise
        write_state(folder, state, RunStatus.FINISHED)


def _new_run(
    stage: str,
    state: RunState,
    folder: Path,
    task: Task[Any],
    parents: list[Origin],
    datasets: list[DatasetUse],
    above: TrackedRun | None,
) -> TrackedRun:
    run = start_run(
        stage,
        state.name,
        task.settings,
        results=str(folder),
        parents=[parent.id for parent in parents],
        datasets=datasets,
    )
    run.tag(**task.tags())
    if above is not None:
        run.put_below(above)
    return run


@contextmanager
def acquire_run(
    home: Path, stage: str, subject: str, settings: TrainSettings, datasets: list[DatasetUse]
) -> Iterator[tuple[Path, RunState]]:
    """Finds the run to resume or makes a new one, and holds its lock."""
    digest, digests = settings_digest(settings), [use.digest for use in datasets]
    for folder in _candidates(home, settings):
        try:
            state = _read_state(folder)
        except UserError as error:
            if settings.name is not None:
                raise
            logger.warning(f"passed over  {error}")  # whatever it was, others may go on
            continue
        same = state.settings_digest == digest and state.dataset_digests == digests
        if settings.name is not None and not same:
            raise UserError(
                f"--name {settings.name}: {folder} was made with other settings or data; "
                "choose another name, or the settings it was made with"
            )
        wanted = settings.resume and (
            state.status != RunStatus.FINISHED or settings.name is not None
        )
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
    state = RunState(stage, folder.name, digest, RunStatus.RUNNING, {}, digests)
    write_state(folder, state, RunStatus.RUNNING)
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
        except BlockingIOError:
            yield False
            return
        except OSError as error:  # a file system without locks, e.g. some of NFS and FUSE
            logger.warning(
                f"{folder}: this file system has no locks ({error.strerror}): nothing keeps a "
                "second start of this run from working on it at the same time"
            )
        yield True


def _read_state(folder: Path) -> RunState:
    try:
        values = json.loads((folder / RUN_FILE).read_text("utf-8"))
        return RunState(**{**values, "status": RunStatus(values["status"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / RUN_FILE}: damaged: {error}; remove {folder}") from None


def write_state(folder: Path, state: RunState, status: RunStatus) -> None:
    """Sets a run's status and writes its file, whole or not at all."""
    state.status = status
    growing = folder / f".{RUN_FILE}"
    growing.write_text(json.dumps(asdict(state), indent=2) + "\n", "utf-8")
    growing.replace(folder / RUN_FILE)
