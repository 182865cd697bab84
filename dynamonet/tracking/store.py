"""Which tracking store runs go to: a server that the user names, or a SQLite file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynamonet.errors import UserError
from dynamonet.storage import is_uri

STORE = "mlflow.db"  # the SQLite file in the folder of results


def tracking_uri(runs_path: str) -> str:
    """Returns $MLFLOW_TRACKING_URI, or the SQLite file in the folder of results, which is made.

    Raises:
        UserError: as `store_uri`.
    """
    uri = store_uri(runs_path)
    if sqlite_file(uri) == Path(runs_path) / STORE:
        Path(runs_path).mkdir(parents=True, exist_ok=True)
    return uri


def store_uri(runs_path: str) -> str:
    """Returns what `tracking_uri` does, and makes nothing.

    Raises:
        UserError: results are remote and no tracking server is named: SQLite needs a local disk.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    if is_uri(runs_path):
        raise UserError(
            f"results go to {runs_path}, where MLflow's SQLite file cannot be: "
            "name a tracking server in MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{runs_path}/{STORE}"


def sqlite_file(uri: str) -> Path | None:
    """Returns the file of a SQLite store; None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextmanager
def answering_soon() -> Iterator[None]:
    """Bounds the wait for a tracking server to seconds, where MLflow would try for minutes.

    What the user set in these variables stays.
    """
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
    ours = {key: value for key, value in wanted.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            os.environ.pop(key, None)
