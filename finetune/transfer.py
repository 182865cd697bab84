"""Which pretrained weights go into a model, and which do not."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dynamonet import tracking
from dynamonet.errors import UserError
from dynamonet.model.files import DESCRIPTION, locate
from dynamonet.model.network import DynamoNet
from dynamonet.origin import Origin
from dynamonet.tracking_store import tracking_uri
from dynamonet.training.checkpoint import read_origin
from dynamonet.training.run_folder import MODEL
from finetune.settings import FinetuneSettings

PARTS = ("trunk", "motion")  # what pretraining teaches; a classifier always starts fresh


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model on disk, and the run that made it if known."""

    folder: Path
    origin: Origin | None

    @property
    def run_id(self) -> str | None:
        return self.origin.id if self.origin else None


@dataclass(frozen=True)
class Transfer:
    """How a checkpoint fitted a model; numbers of values by part."""

    loaded: Counter[str]
    missing: list[str]  # of the model, not in the checkpoint
    misshapen: list[str]  # in both, with another shape
    unexpected: list[str]  # in the checkpoint only
    wanted: int  # values of trunk and filters in the model

    @property
    def share(self) -> float:
        return sum(self.loaded.values()) / max(1, self.wanted)

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {self.loaded[part]:,}" for part in PARTS)
        text = f"{self.share:.0%} of the weights ({parts} values)"
        for name, keys in vars(self).items():
            if name in ("missing", "misshapen", "unexpected") and keys:
                text += f"; {len(keys)} {name}, e.g. {keys[0]}"
        return text


def find_pretrained(settings: FinetuneSettings) -> Pretrained | None:
    """Resolves --pretrained to a model's folder; None means from scratch.

    Raises:
        UserError: there is no such model; the message names the command that makes one.
    """
    wanted = settings.pretrained
    if wanted == "none":
        return None
    if wanted == "newest":
        uri = tracking_uri(settings.runs_path())
        found = tracking.newest_finished(uri, settings.experiment, "pretrain")
        if found is None:
            raise UserError(
                f"no finished pretraining run in {uri}. Make one with\n"
                "  python pretrain/run.py\nor train from scratch with --pretrained none"
            )
        return _at(Path(found[1]))
    if re.fullmatch("[0-9a-f]{32}", wanted) and not Path(wanted).exists():
        uri = tracking_uri(settings.runs_path())
        return _at(tracking.download(uri, wanted, MODEL))
    return _at(locate(wanted))


def transfer(model: DynamoNet, weights: dict[str, Tensor], min_share: float) -> Transfer:
    """Copies every trunk and filter weight that fits by name and shape into a model.

    Raises:
        UserError: less than `min_share` of the model's weights were found.
    """
    own = {k: v for k, v in model.state_dict().items() if k.split(".")[0] in PARTS}
    given = {k: v for k, v in weights.items() if k.split(".")[0] in PARTS}
    fits = {k: v for k, v in given.items() if k in own and v.shape == own[k].shape}
    loaded = Counter[str]()
    for key, value in fits.items():
        loaded[key.split(".")[0]] += value.numel()
    report = Transfer(
        loaded=loaded,
        missing=sorted(own.keys() - given.keys()),
        misshapen=sorted((own.keys() & given.keys()) - fits.keys()),
        unexpected=sorted(given.keys() - own.keys()),
        wanted=sum(value.numel() for value in own.values()),
    )
    if report.share < min_share:
        raise UserError(
            f"the pretrained weights do not fit this model: {report}. At least "
            f"{min_share:.0%} must (min_loaded_share). Leave `model` at null to take the "
            "checkpoint's own architecture, or set the one it was trained with."
        )
    model.load_state_dict(fits, strict=False)
    return report


def _at(place: Path) -> Pretrained:
    """Accepts a model's folder, a checkpoint's, or the folder of a run."""
    for folder in (place, place / MODEL):
        if (folder / DESCRIPTION).is_file():
            return Pretrained(folder, read_origin(folder))
    raise UserError(
        f"{place}: no model here. Expected the `model` folder that pretraining prints at its end, "
        "an MLflow run id, a hub id, `newest` or `none`."
    )
