"""What stands behind a model: `python -m dynamonet.lineage MODEL_OR_RUN`

    model, checkpoint, run folder, shard set or MLflow run id
      -> the run that made it: when, status, settings, code, shards
         -> the runs that it was built on, and so on

The files' own records are enough; the tracking store adds what it knows where it can be reached.
Whatever is no longer as it was then is marked `changed`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from mlflow.entities import LifecycleStage
from rich.console import Console
from rich.text import Text

from dynamonet import evidence
from dynamonet.errors import UserError, run_entry
from dynamonet.model.files import DESCRIPTION
from dynamonet.origin import DatasetUse, Origin
from dynamonet.shards.index import CARD
from dynamonet.stage import StageSettings
from dynamonet.storage import Folder
from dynamonet.tracking_store import answering_soon, store_uri
from dynamonet.training.checkpoint import read_origin
from dynamonet.training.run_folder import MODEL, RUN_FILE


@dataclass(frozen=True)
class Step:
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
    parents: list[Step]


class Tracer:
    """Follows records from run to run."""

    def __init__(self, runs: str, shards_root: str) -> None:
        self.runs, self.shards_root = runs, shards_root
        self.stores = evidence.Stores(store_uri(runs))
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
        elif found := evidence.run_folder(folder.path):
            origin, model = found.origin, path / MODEL
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

    def trace(self, origin: Origin, above: tuple[str, ...] = ()) -> Step:
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
        return Step(
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
        found, reason = self.stores.find(origin)
        if found is None:
            raise UserError(
                f"run {run_id}: {reason}, and no folder in {self.runs} or {self.shards_root} is "
                "of this run. Name its folder, or the place of its results with --runs"
            )
        return origin


def show(step: Step, console: Console, indent: str = "", shown: set[str] | None = None) -> None:
    """Prints a run, and below it, further to the right, what it was built on."""
    shown = set() if shown is None else shown

    def line(text: str, style: str = "") -> None:
        console.print(Text(indent + text, style), soft_wrap=True)

    line(f"{step.stage or 'run'} {step.name}".rstrip(), "bold")
    if step.id in shown:
        line("  as above")
        return
    shown.add(step.id)
    line(f"  run       {', '.join(each for each in (step.id, step.status, step.started) if each)}")
    for name, value in vars(step).items():
        if name in ("folder", "settings", "code"):
            line(f"  {name:9} {value or 'not known'}", "" if value else "dim")
    for use in step.datasets:
        line(f"  shards    {use.digest} ({use.context}) {use.path}")
    for text in step.changed:
        line(f"  changed   {text}", "yellow")
    for text in step.notes:
        line(f"  note      {text}", "dim")
    for parent in step.parents:
        show(parent, console, indent + "    ", shown)


def main(argv: list[str]) -> Step:
    """Traces what the command line names, and prints it."""
    parser = argparse.ArgumentParser(
        prog="python -m dynamonet.lineage",
        description="Shows which runs, shards, code and settings something was made from.",
    )
    parser.add_argument("place", help="model, checkpoint, run folder, shard set or MLflow run id")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--runs", help="folder of results; default $DYNAMONET_RUNS, else ./runs")
    options = parser.parse_args(argv)
    here = StageSettings(runs=options.runs)
    with answering_soon():
        tracer = Tracer(here.runs_path(), here.shards_root_path())
        step = tracer.trace(tracer.find(options.place))
    if options.json:
        print(json.dumps(asdict(step), indent=2))
    else:
        show(step, Console(highlight=False))
    return step


if __name__ == "__main__":
    run_entry(main)
