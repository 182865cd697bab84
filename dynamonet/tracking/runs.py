"""MLflow: one run a stage, each naming its parents by run id and by data-set digest.

The driver creates the store and the run, once; rank 0 alone logs to it. A run's tags say

    dynamonet.stage      data_prep | pretrain | finetune
    dynamonet.parents    ids of the runs it builds on, comma-separated
    dynamonet.digest     digest of the shards it made or read
    dynamonet.code       version of the code
    dynamonet.results    folder of its results
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from dynamonet.errors import UserError, reason
from dynamonet.settings import flatten, to_yaml
from dynamonet.stage import StageSettings, code_version
from dynamonet.storage import is_uri
from dynamonet.tracking.origin import DatasetUse, Origin, utc
from dynamonet.tracking.store import tracking_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

logger = logging.getLogger(__name__)
TAG = "dynamonet."
_SCRIPTS = {
    "data_prep": "data_prep/shard.py",
    "pretrain": "pretrain/run.py",
    "finetune": "finetune/run.py",
    "measure": "finetune/measure.py",
}
_PARAM_CHARS = 6000  # MLflow's limit on a parameter's value
_BATCH = 1000  # MLflow's limit on metrics in one call


@dataclass(frozen=True)
class TrackedRun:
    """A run in the tracking store; small and picklable, so that a worker can log to it."""

    uri: str
    run_id: str
    experiment_id: str
    name: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def origin(
        self,
        stage: str,
        results: str,
        datasets: Sequence[DatasetUse],
        parents: Sequence[Origin],
        started: float | None = None,
    ) -> Origin:
        """Returns the record of this run that goes with its files; see `start_run`."""
        return Origin(
            self.run_id,
            self.uri,
            stage,
            self.name,
            folder=results,
            started=utc(started or time.time()),
            code=code_version(),
            datasets=tuple(datasets),
            parents=tuple(parents),
        )

    def tag(self, **tags: str) -> None:
        batch = [RunTag(TAG + key, value) for key, value in tags.items()]
        self.client.log_batch(self.run_id, tags=batch)

    def put_below(self, above: TrackedRun) -> None:
        """Shows the run below another in MLflow's pages."""
        self.client.set_tag(self.run_id, "mlflow.parentRunId", above.run_id)

    def tags(self) -> dict[str, str]:
        """Returns the run's own tags, by their names as `tag` takes them."""
        return own_tags(self.client.get_run(self.run_id))

    def log_metrics(
        self, rows: Mapping[int, Mapping[str, float]], *, after: Mapping[str, int] | None = None
    ) -> None:
        """Logs metrics of several steps in as few calls as possible.

        Args:
            rows: step -> name -> value.
            after: Last step of each metric that stands there already, and is not logged again.
        """
        known = after or {}
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, float(value), now, step)
            for step, values in rows.items()
            for name, value in values.items()
            if step > known.get(name, -1)
        ]
        client = self.client
        for first in range(0, len(metrics), _BATCH):
            client.log_batch(self.run_id, metrics=metrics[first : first + _BATCH])

    def log_figure(self, figure: Figure, name: str) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a name in letters that the font lacks
            self.client.log_figure(self.run_id, figure, name)

    def log_text(self, text: str, name: str) -> None:
        self.client.log_text(self.run_id, text, name)

    def log_bytes(self, content: bytes, name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(name).name
            file.write_bytes(content)
            below = Path(name).parent.as_posix()
            self.client.log_artifact(self.run_id, str(file), None if below == "." else below)

    def log_folder(self, folder: Path, name: str) -> None:
        self.client.log_artifacts(self.run_id, str(folder), name)

    def last_steps(self) -> dict[str, int]:
        """Returns the last step at which each metric was logged."""
        data = self.client.get_run(self.run_id).data  # each metric's last value, with its step
        return {metric.key: metric.step for metric in data.to_proto().metrics}

    def metrics(self, prefix: str) -> dict[str, float]:
        """Returns the last value of each metric whose name begins with a prefix, without it."""
        last = self.client.get_run(self.run_id).data.metrics
        return {k.removeprefix(prefix): v for k, v in last.items() if k.startswith(prefix)}

    def reopen(self) -> None:
        """Marks the run as running again, where the store answers.

        Raises:
            UserError: the store no longer has it.
        """
        try:
            self.client.update_run(self.run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                logger.warning(f"tracking {self.uri} does not answer: {reason(error)}")
                return
            raise UserError(
                f"{self.uri} has no run {self.run_id}, which this training began with: {error}"
            ) from None

    def finish(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)

    def ui_command(self) -> str:
        """Returns the command that shows this run in a browser."""
        if self.uri.startswith(("http://", "https://")):
            return f"open {self.uri}"
        return f"mlflow ui --backend-store-uri {self.uri}"


def start_run(
    stage: str,
    name: str,
    settings: StageSettings,
    *,
    results: str,
    parents: list[str],
    datasets: list[DatasetUse],
    started: float | None = None,
) -> TrackedRun:
    """Creates a run with its full settings, parents, data sets and code version.

    Args:
        started: When the work began, in seconds since the epoch; None = now.

    Raises:
        UserError: the tracking store cannot be reached or written.
    """
    runs_path = settings.runs_path()
    uri = tracking_uri(runs_path)
    try:
        client = MlflowClient(uri)
        experiment_id = _experiment(client, settings.experiment, runs_path, uri)
        since = int((started or time.time()) * 1000)
        run = client.create_run(experiment_id, since, run_name=f"{stage} {name}")
    except (MlflowException, OSError) as error:
        raise UserError(f"the tracking store {uri} cannot be used: {error}") from error
    tracked = TrackedRun(uri, run.info.run_id, experiment_id, name)
    params = [Param(k, str(v)[:_PARAM_CHARS]) for k, v in flatten(settings).items()]
    client.log_batch(tracked.run_id, params=params)
    digests = ",".join(dict.fromkeys(use.digest for use in datasets))
    tracked.tag(
        stage=stage,
        parents=",".join(parents),
        digest=digests,
        code=code_version(),
        results=results,
    )
    _log_datasets(tracked, datasets)
    _show_origin(tracked, stage, parents)
    tracked.log_text(to_yaml(settings), "settings.yaml")
    return tracked


def _show_origin(run: TrackedRun, stage: str, parents: list[str]) -> None:
    """Fills what MLflow's pages show: the script, the commit, and links to the parents."""
    client = run.client
    commit = code_version().split()[-1].removesuffix("+changes")
    tags = {"mlflow.source.name": _SCRIPTS[stage], "mlflow.source.git.commit": commit}
    links = []
    for parent in parents:
        try:
            info = client.get_run(parent).info
        except MlflowException:  # made under another tracking store
            links.append(f"`{parent}` (in another store)")
        else:
            place = f"#/experiments/{info.experiment_id}/runs/{info.run_id}"
            links.append(f"[{info.run_name}]({place})")
    if links:
        tags["mlflow.note.content"] = "Built on " + ", ".join(links)
    client.log_batch(run.run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _log_datasets(run: TrackedRun, datasets: list[DatasetUse]) -> None:
    """Shows shard sets among a run's inputs."""
    inputs = [
        DatasetInput(
            Dataset(use.name, use.digest, "local", f'{{"uri": "{use.path}"}}'),
            tags=[InputTag("mlflow.data.context", use.context)],
        )
        for use in datasets
    ]
    if inputs:
        run.client.log_inputs(run.run_id, inputs)


@contextmanager
def closing(run: TrackedRun) -> Iterator[TrackedRun]:
    """Ends the run as FINISHED, as KILLED on Ctrl-C or a stop, as FAILED on any other error."""
    try:
        yield run
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        with contextlib.suppress(Exception):  # a store that is gone must not hide the reason
            run.finish(status)
        raise
    try:
        run.finish("FINISHED")
    except Exception as error:  # MLflow's own, SQLAlchemy's, requests' and others
        logger.warning(f"tracking {run.uri} was not told that the run is done: {reason(error)}")


def own_tags(run: Run) -> dict[str, str]:
    """Returns a run's tags of this program, by their names as `TrackedRun.tag` takes them."""
    tags = run.data.tags
    return {key.removeprefix(TAG): tags[key] for key in tags if key.startswith(TAG)}


def _experiment(client: MlflowClient, name: str, runs_path: str, uri: str) -> str:
    known = client.get_experiment_by_name(name)
    if known is not None:
        return known.experiment_id
    local = uri.startswith("sqlite:") and not is_uri(runs_path)
    location = f"file://{runs_path}/artifacts" if local else None
    tags = {"mlflow.experimentKind": "custom_model_development"}  # else its pages speak of agents
    return client.create_experiment(name, artifact_location=location, tags=tags)
