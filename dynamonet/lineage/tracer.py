"""Follows records from run to run.

    model, checkpoint, run folder, shard set or MLflow run id
      -> the run that made it: when, status, settings, code, shards
         -> the runs that it was built on, and so on

The files' own records are enough; the tracking store adds what it knows where it can be reached.
Whatever has changed since is marked `changed`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import LifecycleStage

from dynamonet.errors import UserError
from dynamonet.lineage import evidence
from dynamonet.model.files import DESCRIPTION, MODEL
from dynamonet.shards.card import CARD
from dynamonet.storage import Folder
from dynamonet.tracking.origin import DatasetUse, Origin
from dynamonet.tracking.store import store_uri
from dynamonet.training.checkpoint.state import read_origin
from dynamonet.training.run_folder import RUN_FILE


@dataclass(frozen=True)
class LineageNode:
    """One run in the lineage; what is not known is empty."""

    id: str
    stage: str
    name: str
    status: str
    started: str
    folder: str
    settings: str  # file, or artifact of the run
    code: str
    tracking_uri: str
    datasets: list[DatasetUse]
    changed: list[str]  # what is not as it was
    notes: list[str]  # what could not be looked up
    parents: list[LineageNode]


class Tracer:
    """Follows records from run to run."""

    def __init__(self, runs: str, shards_root: str) -> None:
        self.runs, self.shards_root = runs, shards_root
        self.stores = evidence.TrackingStores(store_uri(runs))
        self._met: dict[str, Origin] = {}
        self._shard_changes = functools.cache(evidence.shard_changes)

    def find(self, place: str) -> Origin:
        """Returns the record of a model, a checkpoint, a run folder, a shard set or a run id.

        Raises:
            UserError: nothing of the kind is there, or it does not say which run made it.
        """
        if re.fullmatch("[0-9a-f]{32}", place) and not Path(place).exists():
            return self._known(place)
        folder = Folder.at(place)
        path = Path(folder.path)
        if folder.size(CARD) is not None:
            origin = evidence.set_origin(place)
        elif run_folder := evidence.run_folder(folder.path):
            origin, model = run_folder.origin, path / MODEL
            made = read_origin(model) if (model / DESCRIPTION).is_file() else None
            if made and made.id == origin.id:
                origin = dataclasses.replace(origin, model=made.model, weights=made.weights)
        elif (path / DESCRIPTION).is_file():
            origin = read_origin(path)
        else:
            raise UserError(
                f"{place}: nothing to trace. Expected the folder of a model ({DESCRIPTION}), of "
                f"a run ({RUN_FILE}) or of a shard set ({CARD}), or an MLflow run id of 32 hex "
                "digits"
            )
        if origin is None or not origin.id:
            raise UserError(f"{place}: does not say which run made it, so nothing can be traced")
        return origin

    def trace(self, origin: Origin, above: tuple[str, ...] = ()) -> LineageNode:
        """Returns a run with everything that it was built on.

        Args:
            above: Ids of the runs that led here; one that comes again is not followed.
        """
        origin = origin.filled_from(self._met.get(origin.id, origin))
        run, reason = self.stores.find(origin)
        notes = [] if run else [f"tracking store: {reason}"]
        if run and run.info.lifecycle_stage != LifecycleStage.ACTIVE:
            notes.append("the run was deleted in the tracking store")
        stored = evidence.origin_in_store(run) if run else Origin(origin.id)
        home = origin.folder or stored.folder
        home = home or evidence.folder_of(origin.id, self.runs, self.shards_root)
        folder = evidence.run_folder(home) if home else None
        there = folder.origin if folder else evidence.set_origin(home) if home else None
        if there and there.id == origin.id:
            origin = origin.filled_from(there)
        elif there:
            folder = None
            notes.append(f"{home} was made again by run {there.id}")
        self._met[origin.id] = origin = origin.filled_from(stored)
        if not origin.stage:
            notes.append("nothing but its id is known of this run here")
        status = run.info.status.lower() if run else ""
        above = (*above, origin.id)
        return LineageNode(
            id=origin.id,
            stage=origin.stage,
            name=origin.name,
            status=status or (folder.status if folder else ""),
            started=origin.started,
            folder=origin.folder,
            settings=evidence.settings_place(origin, run),
            code=origin.code,
            tracking_uri=origin.tracking_uri,
            datasets=list(origin.datasets),
            changed=evidence.changes(origin, self._shard_changes),
            notes=notes,
            parents=[self.trace(each, above) for each in origin.parents if each.id not in above],
        )

    def _known(self, run_id: str) -> Origin:
        """Returns the record of a run id that the tracking store or a folder here knows."""
        home = evidence.folder_of(run_id, self.runs, self.shards_root)
        if home:
            return self.find(home)
        origin = Origin(run_id, self.stores.own)
        run, reason = self.stores.find(origin)
        if run is None:
            raise UserError(
                f"run {run_id}: {reason}, and no folder in {self.runs} or {self.shards_root} is "
                "of this run. Name its folder, or the place of its results with --runs"
            )
        return origin
