"""Checks of where things lie: free disk, results, shards, tracking store."""

from __future__ import annotations

import os
import shutil
import tempfile

from pyarrow import fs as pafs

from dynamonet.commands import command
from dynamonet.doctor.check import Check, PreflightSettings, nearest_folder
from dynamonet.errors import UserError
from dynamonet.storage import Folder, is_uri

WARN_GB, FAIL_GB = 10, 1
MAKE = f"{command('shard')} --source VIDEOS --output"
PROBE_RUN = "doctor: may this store be written to?"


def disk(settings: PreflightSettings) -> list[Check]:
    """Measures the free space where results and shards go."""
    places = {"results": settings.runs_path(), "shards": settings.shards_root_path()}
    checks = []
    for what, path in places.items():
        if is_uri(path):
            continue
        free = shutil.disk_usage(nearest_folder(path)).free / 1e9
        state = "fail" if free < FAIL_GB else "warn" if free < WARN_GB else "pass"
        move = "--runs" if what == "results" else "--shards_root"
        remedy = "" if state == "pass" else f"make room, or move the {what} with {move}"
        checks.append(Check(state, "disk", f"{free:,.1f} GB free for {what} in {path}", remedy))
    return checks


def results(settings: PreflightSettings) -> list[Check]:
    """Writes a file that has no name to where results go."""
    path = settings.runs_path()
    remedy = "name another folder with --runs or DYNAMONET_RUNS, or fix its permissions"
    if is_uri(path):
        text = f"{path}: a training's results must be on a mounted file system"
        return [Check("fail", "results", text, remedy)]
    try:
        folder = nearest_folder(path)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        text = f"{path}: cannot be written to: {error.strerror or error}"
        return [Check("fail", "results", text, remedy)]
    made = "" if str(folder) == path else f" (will be made in {folder})"
    return [Check("pass", "results", f"{path} can be written to{made}")]


def shards(settings: PreflightSettings) -> list[Check]:
    """Opens every set below the root, and those that the settings name."""
    from dynamonet.shards.card import CARD

    root = Folder.at(settings.shards_root_path())
    infos = root.fs.get_file_info(pafs.FileSelector(root.root, allow_not_found=True))
    names = sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)
    paths = [f"{root.path}/{name}" for name in names]
    checks = [check for path in paths for check in _open_set(path)]
    for wanted in settings.shards_paths():
        if wanted not in paths:
            checks += _open_set(wanted)
        if Folder.at(wanted).size(CARD) is None:
            text = f"no shards in {wanted}, from which pretraining would learn"
            # where there is nothing at all yet, stage 1 simply comes first
            fresh = not checks and settings.shards == type(settings).model_fields["shards"].default
            checks.append(Check("warn" if fresh else "fail", "shards", text, f"{MAKE} {wanted}"))
    return checks


def _open_set(path: str) -> list[Check]:
    """Opens one set; a folder that holds nothing of a set gives no line."""
    from dynamonet.shards.card import CARD, RECORDS
    from dynamonet.shards.shard_set import ShardSet

    folder = Folder.at(path)
    if folder.size(CARD) is None:
        if not folder.names(RECORDS):
            return []
        text = f"{path}: begun, but stage 1 did not finish it"
        return [Check("warn", "shards", text, "run the same data_prep/shard.py command again")]
    try:
        opened = ShardSet.open(path)
    except UserError as error:
        text = " ".join(error.problem.split())
        remedy = " ".join(error.remedy.split()) or f"{MAKE} {path}"
        return [Check("fail", "shards", text, remedy)]
    size = opened.card.counts.bytes / 1e9
    return [Check("pass", "shards", f"{path}: {len(opened):,} segments, {size:,.2f} GB")]


def tracking_store(settings: PreflightSettings) -> list[Check]:
    """Makes a run in the tracking store and deletes it again, leaving no experiment behind."""
    from mlflow import MlflowClient

    from dynamonet.tracking.store import answering_soon, sqlite_file, store_uri

    uri = store_uri(settings.runs_path())
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        with tempfile.TemporaryFile(dir=nearest_folder(str(file.parent))):
            return [Check("pass", "tracking", f"{uri} will be made by the first run")]
    try:
        with answering_soon():
            client = MlflowClient(uri)
            experiment = client.get_experiment_by_name(settings.experiment)
            home = experiment.experiment_id if experiment else "0"  # MLflow's own, always there
            run = client.create_run(home, run_name=PROBE_RUN)
            client.delete_run(run.info.run_id)
    except Exception as error:  # MLflow's own, SQLAlchemy's, requests' and others
        given = "MLFLOW_TRACKING_URI" in os.environ
        remedy = (
            "start the server, or fix or unset MLFLOW_TRACKING_URI (then runs go to mlflow.db "
            "in the folder of results)"
            if given
            else f"fix the permissions of {file}, or upgrade it: mlflow db upgrade {uri}"
        )
        return [Check("fail", "tracking", f"{uri}: {str(error).strip().splitlines()[0]}", remedy)]
    artifacts = run.info.artifact_uri or ""
    if file is None and artifacts.startswith(("/", "file:")):
        text = f"{uri} answers, but each machine writes artifacts to its own {artifacts}"
        remedy = "start the server with --artifacts-destination, or use a mounted folder"
        return [Check("warn", "tracking", text, remedy)]
    return [Check("pass", "tracking", f"{uri}: a run was made and deleted again")]
