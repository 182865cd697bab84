"""Runs that are found in the tracking store, and what they left there."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from dynamonet.errors import UserError
from dynamonet.tracking.runs import TAG, own_tags


@dataclass(frozen=True)
class FoundRun:
    """A run as a search finds it."""

    run_id: str
    experiment_id: str
    tags: dict[str, str]  # its own, by their names as `TrackedRun.tag` takes them


def tagged(uri: str, name: str, value: str, *, measured: str | None = None) -> list[FoundRun]:
    """Returns the runs of all experiments that have a tag, the oldest first.

    Args:
        measured: A metric that they must have.
    """
    client, found, page = MlflowClient(uri), list[FoundRun](), None
    experiments = [each.experiment_id for each in client.search_experiments()]
    while True:
        runs = client.search_runs(
            experiments,
            f"tags.`{TAG}{name}` = '{value}'",
            order_by=["attributes.start_time ASC"],
            page_token=page,
        )
        found += [
            FoundRun(run.info.run_id, run.info.experiment_id, own_tags(run))
            for run in runs
            if measured is None or measured in run.data.metrics
        ]
        page = runs.token
        if not page:
            return found


def newest_finished(uri: str, experiment: str, stage: str) -> tuple[str, str] | None:
    """Returns (run id, results folder) of the newest finished run of a stage, if any."""
    client = MlflowClient(uri)
    known = client.get_experiment_by_name(experiment)
    if known is None:
        return None
    runs = client.search_runs(
        [known.experiment_id],
        f"tags.`{TAG}stage` = '{stage}' and attributes.status = 'FINISHED'",
        ViewType.ACTIVE_ONLY,
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    return (runs[0].info.run_id, runs[0].data.tags[TAG + "results"]) if runs else None


def download(uri: str, run_id: str, artifact: str) -> Path:
    """Copies an artifact of a run to a temporary folder.

    Raises:
        UserError: no such run or artifact.
    """
    try:
        target = tempfile.mkdtemp(prefix="dynamonet-")
        return Path(MlflowClient(uri).download_artifacts(run_id, artifact, target))
    except (MlflowException, OSError) as error:
        raise UserError(f"run {run_id} of {uri} has no artifact {artifact!r}: {error}") from None
