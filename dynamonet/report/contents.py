"""What a report says of a run, gathered from its folder and from its tracking store."""

from __future__ import annotations

import csv
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from dynamonet.errors import UserError
from dynamonet.lineage import evidence
from dynamonet.lineage.tracer import LineageNode, Tracer
from dynamonet.report.curves import History
from dynamonet.shards.card import Card, read_card
from dynamonet.stage import Places
from dynamonet.storage import Folder
from dynamonet.tracking.origin import DatasetUse
from dynamonet.tracking.runs import TAG

PICTURES = ("panel", "test")  # folders of artifacts
PER_CLASS = "test/per_class.csv"
_CLASSES_NAMED = 12


@dataclass
class ReportContents:
    """All that a report shows."""

    step: LineageNode  # the run, and below it what it was built on
    advice: str = ""
    protocol: str = ""  # what the test's accuracy depends on
    choice: str = ""  # between it and other runs
    metrics: dict[str, History] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)  # name -> PNG
    per_class: list[dict[str, str]] = field(default_factory=list)
    settings: str = ""  # YAML
    cards: list[tuple[DatasetUse, dict[str, Any]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what could not be read

    @property
    def last(self) -> dict[str, float]:
        """The last value of each metric."""
        return {name: history[-1][1] for name, history in self.metrics.items()}


def gather(place: str, here: Places) -> ReportContents:
    """Gathers what is known of a run; what cannot be read is noted.

    Args:
        place: Folder of a run, or an MLflow run id.
        here: Where runs and shards are.

    Raises:
        UserError: that is no run of a training.
    """
    tracer = Tracer(here.runs_path(), _shards_root(here))
    origin = tracer.find(place)
    step = tracer.trace(origin)
    if not evidence.run_folder(step.folder):
        raise UserError(
            f"{place}: no run of a training. Expected the folder of a pretraining or fine-tuning "
            "run, e.g. runs/pretrain/NAME, or its MLflow run id"
        )
    settings = Path(step.folder) / "settings.yaml"
    contents = ReportContents(
        step, settings=settings.read_text("utf-8") if settings.is_file() else ""
    )
    for use in {use.path: use for use in step.datasets}.values():
        try:
            contents.cards.append((use, card_facts(read_card(Folder.at(use.path)))))
        except (UserError, OSError) as error:
            contents.notes.append(" ".join(str(error).split()))
    run, reason = tracer.stores.find(origin)
    if run is None:
        contents.notes.append(f"no curves and pictures: {reason}")
    else:
        _add_from_store(contents, MlflowClient(step.tracking_uri), run)
    return contents


def card_facts(card: Card) -> dict[str, Any]:
    """Returns what a data-set card says, as one flat table."""
    classes = card.classes
    named = ", ".join(classes[:_CLASSES_NAMED]) + (", ..." if len(classes) > _CLASSES_NAMED else "")
    facts = {"digest": card.digest, "made with": card.made_with}
    facts |= {key.replace("_", " "): value for key, value in card.counts.model_dump().items()}
    if classes:
        facts |= {"classes": f"{len(classes)}: {named}", "splits": card.num_splits}
    return facts | _flat(card.settings)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _add_from_store(contents: ReportContents, client: MlflowClient, run: Run) -> None:
    """Adds what the tracking store knows: metrics, pictures, test results."""
    run_id = run.info.run_id
    contents.advice = run.data.tags.get(TAG + "advice", "")
    contents.protocol = run.data.tags.get(TAG + "protocol", "")
    contents.choice = run.data.tags.get(TAG + "choice", "")
    for name in sorted(run.data.metrics):
        history = sorted((m.step, m.value) for m in client.get_metric_history(run_id, name))
        contents.metrics[name] = history
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in _newest(client, run_id):
                file = Path(client.download_artifacts(run_id, name, folder))
                if file.suffix == ".png":
                    contents.pictures[name] = file.read_bytes()
                else:
                    with file.open(newline="", encoding="utf-8") as text:
                        contents.per_class.extend(csv.DictReader(text))
        except (MlflowException, OSError) as error:
            contents.notes.append(f"pictures cannot be read: {error}")


def _newest(client: MlflowClient, run_id: str) -> list[str]:
    """Returns the last picture of each kind: of filters-00000200.png and -00000400.png the last."""
    newest: dict[str, str] = {}
    for folder in PICTURES:
        for item in sorted(client.list_artifacts(run_id, folder), key=lambda item: item.path):
            if item.path.endswith(".png") or item.path == PER_CLASS:
                newest[re.sub(r"-\d+\.png$", "", item.path)] = item.path
    return list(newest.values())


def _shards_root(here: Places) -> str:
    """Returns where shard sets are looked for; a job in a shipped copy may not have been told."""
    try:
        return here.shards_root_path()
    except UserError:
        return here.runs_path()
