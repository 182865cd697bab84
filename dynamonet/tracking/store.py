"""Which tracking store runs go to: a server that the user names, or a SQLite file."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dynamonet.errors import UserError
from dynamonet.storage import is_uri

logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # "Creating tables"
STORE = "mlflow.db"  # the SQLite file in the folder of results


def tracking_uri(runs_path: str) -> str:
    """Returns $MLFLOW_TRACKING_URI, or the SQLite file in the folder of results, which is made.

    Raises:
        UserError: as `store_uri`, or the file cannot be made.
    """
    uri = store_uri(runs_path)
    file = sqlite_file(uri)
    if file and file == Path(runs_path) / STORE:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--runs {runs_path}: cannot be made: {error.strerror}; name another folder"
            ) from None
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise UserError(f"--runs {runs_path}: may not be written to; name another folder")
        if not file.exists():
            _make(file)
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


def _make(file: Path) -> None:
    """Makes a store under another name first.

    MLflow makes its tables one by one: a store on which it was stopped would be refused for ever,
    and two processes would break each other's.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    growing = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    try:
        MlflowClient(f"sqlite:///{growing}").search_experiments(max_results=1)
        with suppress(FileExistsError):  # somebody else was first, and may have written into it
            os.link(growing, file)
    except (MlflowException, OSError) as error:
        raise UserError(f"the tracking store {file} cannot be made: {error}") from error
    finally:
        growing.unlink(missing_ok=True)


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
