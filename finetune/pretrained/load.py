"""Which pretrained weights go into a model, and which do not."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dynamonet.commands import command
from dynamonet.errors import UserError
from dynamonet.model.config import ModelConfig
from dynamonet.model.files import DESCRIPTION, WEIGHTS, locate, read_description, read_weights
from dynamonet.model.network import DynamoNet
from dynamonet.settings import validate
from dynamonet.tracking.origin import Origin
from dynamonet.tracking.runs import download, newest_finished
from dynamonet.tracking.store import tracking_uri
from dynamonet.training.checkpoint.state import read_origin
from dynamonet.training.run_folder import MODEL
from finetune.pretrained.convert import convert_backbone
from finetune.pretrained.weight_files import SUFFIXES, read_tensors
from finetune.settings import FinetuneSettings

PARTS = ("trunk", "motion")  # what pretraining teaches; a classifier always starts fresh


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model on disk, and the run that made it if known."""

    folder: Path  # or the file of weights that others trained
    origin: Origin | None
    note: str | None = None  # what such a file holds and what is done to it

    @property
    def run_id(self) -> str | None:
        return self.origin.id if self.origin else None


@dataclass(frozen=True)
class Transfer:
    """How a checkpoint fitted a model; numbers of values by part."""

    loaded: Counter[str]
    wanted: Counter[str]  # of the model
    fresh: list[str]  # parts that the checkpoint does not have at all
    missing: list[str]  # of the model, not in the checkpoint
    misshapen: list[str]  # in both, with another shape
    unexpected: list[str]  # in the checkpoint only
    left: list[str]  # classifiers and the like, which are never taken

    @property
    def share(self) -> float:
        """Loaded values as a share of the parts that the checkpoint has; always of the trunk."""
        return self.loaded.total() / max(
            1, sum(self.wanted[p] for p in PARTS if p not in self.fresh)
        )

    def lines(self) -> list[str]:
        """Returns a line for each part: values loaded, and which weights were not."""
        lines = []
        for part in PARTS:
            if part in self.fresh:
                lines.append(f"{part} fresh ({self.wanted[part]:,} values)")
                continue
            line = f"{part} {self.loaded[part]:,} of {self.wanted[part]:,} values"
            for name in ("missing", "misshapen", "unexpected"):
                keys = [key for key in getattr(self, name) if _part(key) == part]
                line += f"; {len(keys)} {name}, e.g. {keys[0]}" if keys else ""
            lines.append(line)
        left = f"; {len(self.left)} tensors not taken, e.g. {self.left[0]}" if self.left else ""
        return [*lines, f"classifier fresh{left}"]

    def __str__(self) -> str:
        return "\n           ".join([f"{self.share:.0%} of the weights", *self.lines()])


def find_pretrained(settings: FinetuneSettings) -> Pretrained | None:
    """Resolves --pretrained to a model's folder or a file of weights; None means from scratch.

    Raises:
        UserError: there is no such model, and the message names the command that makes one; or a
            file is not understood.
    """
    wanted = settings.pretrained
    if wanted == "none":
        return None
    if wanted == "newest":
        uri = tracking_uri(settings.runs_path())
        newest = newest_finished(uri, settings.experiment, "pretrain")
        if newest is None:
            raise UserError(
                f"no finished pretraining run in {uri}. Make one with\n"
                f"  {command('pretrain')}\nor train from scratch with --pretrained none"
            )
        return _at(Path(newest[1]))
    file = Path(wanted).expanduser().absolute()
    if file.is_file() and not (file.name == WEIGHTS and (file.parent / DESCRIPTION).is_file()):
        return Pretrained(file, None, str(convert_backbone(read_tensors(file), wanted)))
    if file.is_file():
        return _at(file.parent)
    if file.suffix in SUFFIXES and not file.exists():
        raise UserError(f"{wanted}: no such file of weights")
    if re.fullmatch("[0-9a-f]{32}", wanted) and not Path(wanted).exists():
        uri = tracking_uri(settings.runs_path())
        return _at(download(uri, wanted, MODEL))
    return _at(locate(wanted))


def pretrained_config(place: Path) -> ModelConfig:
    """Returns the architecture of a model's folder, or of a file of weights.

    Raises:
        UserError: neither is here, or it is damaged or not understood.
    """
    if place.is_file():
        return convert_backbone(read_tensors(place), str(place)).model()
    return validate(ModelConfig, read_description(place)["model"], origin=str(place))


def pretrained_weights(place: Path, config: ModelConfig) -> dict[str, Tensor]:
    """Returns the weights of a model's folder or of a file, under the names of a model.

    Args:
        config: The model that they are meant for.

    Raises:
        UserError: neither is here, or it is damaged or not understood; or they were trained on
            another input.
    """
    if (seen := pretrained_config(place).input) != config.input:
        raise UserError(
            f"{place} was trained on model.input={seen}, and this model's is {config.input}. Leave "
            f"`model` at null to take the checkpoint's own architecture, or set model.input={seen}"
        )
    if place.is_file():
        return convert_backbone(read_tensors(place), str(place)).weights(config)
    return read_weights(place)


def transfer(model: DynamoNet, weights: dict[str, Tensor], min_share: float) -> Transfer:
    """Copies every trunk and filter weight that fits by name and shape into a model.

    Raises:
        UserError: less than `min_share` of the weights of the trunk, and of the filters if the
            checkpoint has any, were found.
    """
    own = {k: v for k, v in model.state_dict().items() if _part(k) in PARTS}
    given = {k: v for k, v in weights.items() if _part(k) in PARTS}
    fits = {k: v for k, v in given.items() if k in own and v.shape == own[k].shape}
    has_filters = any(_part(key) == "motion" for key in given)
    fresh = [] if has_filters else ["motion"]
    report = Transfer(
        loaded=_values(fits),
        wanted=_values(own),
        fresh=fresh,
        missing=sorted(k for k in own.keys() - given.keys() if _part(k) not in fresh),
        misshapen=sorted((own.keys() & given.keys()) - fits.keys()),
        unexpected=sorted(given.keys() - own.keys()),
        left=sorted(weights.keys() - given.keys()),
    )
    if report.share < min_share:
        raise UserError(
            "the pretrained weights do not fit this model: "
            f"{report.share:.0%} ({', '.join(report.lines())}). At least "
            f"{min_share:.0%} must (min_loaded_share). Leave `model` at null to take the "
            "checkpoint's own architecture, or set the one it was trained with."
        )
    model.load_state_dict(fits, strict=False)
    return report


def _part(key: str) -> str:
    return key.split(".")[0]


def _values(tensors: dict[str, Tensor]) -> Counter[str]:
    counts = Counter[str]()
    for key, value in tensors.items():
        counts[_part(key)] += value.numel()
    return counts


def _at(place: Path) -> Pretrained:
    """Accepts a model's folder, a checkpoint's, or the folder of a run."""
    for folder in (place, place / MODEL):
        if (folder / DESCRIPTION).is_file():
            return Pretrained(folder, read_origin(folder))
    raise UserError(
        f"{place}: no model here. Expected the `model` folder that pretraining prints at its end, "
        "a file of weights, an MLflow run id, a hub id, `newest` or `none`."
    )
