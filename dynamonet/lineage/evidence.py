"""What disk and tracking store still know of a run, and what is no longer as its record says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from dynamonet.errors import UserError
from dynamonet.model.files import DESCRIPTION, WEIGHTS, WEIGHTS_DIGEST, weights_digest
from dynamonet.shards.card import CARD, RECORDS, read_card
from dynamonet.shards.index import content_digest
from dynamonet.shards.shard_set import ShardSet
from dynamonet.stage import code_version
from dynamonet.storage import Folder, is_uri
from dynamonet.tracking.origin import DatasetUse, Origin, utc
from dynamonet.tracking.runs import TAG
from dynamonet.tracking.store import sqlite_file
from dynamonet.training.run_folder import RUN_FILE


class TrackingStores:
    """The tracking stores that records name; one that does not answer is asked only once."""

    def __init__(self, own: str) -> None:
        self.own = own  # the store of this place, asked where the record's own does not know
        self.silent: dict[str, str] = {}  # store -> reason

    def find(self, origin: Origin) -> tuple[Run | None, str]:
        """Returns the run that a record names, or None and why there is none."""
        reasons = []
        for uri in dict.fromkeys(filter(None, (origin.tracking_uri, self.own))):
            if uri not in self.silent:
                try:
                    return _client(uri).get_run(origin.id), ""
                except Exception as error:  # MLflow's own, SQLAlchemy's, requests' and others
                    if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                        reasons.append(f"{uri} has no such run")
                        continue
                    self.silent[uri] = str(error).strip().split("\n")[0]
            reasons.append(f"{uri} cannot be read: {self.silent[uri]}")
        return None, "; ".join(reasons)


@dataclass(frozen=True)
class RunFolder:
    """A run's folder on disk."""

    status: str
    origin: Origin


def _client(uri: str) -> MlflowClient:
    file = sqlite_file(uri)
    if file is not None and not file.is_file():  # else MLflow would make it
        raise FileNotFoundError(f"there is no file {file}")
    return MlflowClient(uri)


def origin_in_store(run: Run) -> Origin:
    """Returns the record of a run as the tracking store's tags and inputs tell it."""
    tags = {k.removeprefix(TAG): v for k, v in run.data.tags.items() if k.startswith(TAG)}
    stage = tags.get("stage", "")
    inputs = run.inputs.dataset_inputs if run.inputs else []
    datasets = []
    for each in inputs:
        tag = next((tag for tag in each.tags if tag.key == "mlflow.data.context"), None)
        path = json.loads(each.dataset.source).get("uri", "")
        context = tag.value if tag else ""
        datasets.append(DatasetUse(each.dataset.name, path, each.dataset.digest, context))
    parents = [each for each in tags.get("parents", "").split(",") if each]
    return Origin(
        run.info.run_id,
        stage=stage,
        name=(run.info.run_name or "").removeprefix(f"{stage} "),
        folder=tags.get("results", ""),
        started=utc((run.info.start_time or 0) / 1000),
        code=tags.get("code", ""),
        datasets=tuple(datasets),
        parents=tuple(Origin(each) for each in parents),
    )


def run_folder(folder: str) -> RunFolder | None:
    """Reads a run's folder; None where there is none or it cannot be read."""
    try:
        state = json.loads((Path(folder) / RUN_FILE).read_text("utf-8"))
        mlflow, status = state["mlflow"], str(state["status"])
        plain = Origin(mlflow.get("run_id", ""), mlflow.get("uri", ""), state["stage"])
        origin = Origin.read(state.get("origin")) or plain  # versions before had no record
        plain = dataclasses.replace(plain, name=state["name"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    where = str(Path(folder).absolute())
    return RunFolder(status, dataclasses.replace(origin.filled_from(plain), folder=where))


def set_origin(folder: str) -> Origin | None:
    """Returns the record on a shard set's card, with the place where the set lies now."""
    try:
        where = Folder.at(folder)
        card = read_card(where)
    except (UserError, OSError):
        return None
    origin = Origin.read(card.run)
    if origin is None:
        return None
    name = origin.name or where.path.rsplit("/", 1)[-1]
    digest = origin.datasets[0].digest if origin.datasets else card.digest
    use = DatasetUse(name, where.path, digest, "output")
    return dataclasses.replace(origin, folder=where.path, datasets=(use,))


def folder_of(run_id: str, runs: str, shards_root: str) -> str:
    """Returns the folder of results or shards whose record names a run, or an empty text."""
    if not is_uri(runs):
        for file in sorted(Path(runs).glob(f"*/*/{RUN_FILE}")):
            run = run_folder(str(file.parent))
            if run and run.origin.id == run_id:
                return str(file.parent)
    if not is_uri(shards_root):
        for file in sorted(Path(shards_root).glob(f"*/{CARD}")):
            origin = set_origin(str(file.parent))
            if origin and origin.id == run_id:
                return str(file.parent)
    return ""


def settings_place(origin: Origin, run: Run | None) -> str:
    """Returns where a run's complete settings are, or an empty text."""
    for name in ("settings.yaml", f"{RECORDS}/settings.json"):
        try:
            if origin.folder and Folder.at(origin.folder).size(name) is not None:
                return f"{origin.folder}/{name}"
        except (UserError, OSError):
            break
    return f"artifact settings.yaml of run {run.info.run_id}" if run else ""


def changes(origin: Origin, shard_changes: Callable[[str, str], list[str]]) -> list[str]:
    """Returns what is no longer as a run's record says: code, shards, weights.

    Args:
        shard_changes: The function below, or one that remembers its answers.
    """
    changed = []
    if origin.code and origin.code != (now := code_version()):
        changed.append(f"the code is now {now}")
    for use in origin.datasets:
        changed += shard_changes(use.path, use.digest)
    return [*changed, *_weight_changes(Path(origin.model), origin.weights)]


def shard_changes(path: str, digest: str) -> list[str]:
    """Returns in what a shard set differs from the one that had this digest."""
    if not path:  # nobody said where it was
        return []
    try:
        if Folder.at(path).size(CARD) is None:
            return [f"the shards are no longer in {path}"]
        shards = ShardSet.open(path)
    except (UserError, OSError) as error:
        return [" ".join(str(error).split())]
    if shards.digest != digest:
        return [f"the shards in {path} now have digest {shards.digest}"]
    if content_digest(shards.table) != digest:
        return [f"the index in {path} is not the one that its card was written for"]
    return []


def _weight_changes(folder: Path, digest: str) -> list[str]:
    if not digest:
        return []
    try:
        now = weights_digest(folder)
        saved = json.loads((folder / DESCRIPTION).read_text("utf-8")).get(WEIGHTS_DIGEST)
    except (OSError, ValueError):
        return [f"the model is no longer in {folder}"]
    if now == digest:
        return []
    how = "another model was saved there" if saved == now else "damaged or written otherwise"
    return [f"{folder / WEIGHTS}: digest {now} instead of {digest}; {how}"]
