"""Weights that a training starts from: where they are, and how they fit a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dynamonet.errors import UserError
from dynamonet.model.config import NetworkConfig
from dynamonet.model.files import DESCRIPTION, in_run
from dynamonet.model.network import DynamoNet
from dynamonet.tracking.origin import Origin
from dynamonet.training.checkpoint.state import read_origin

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


def model_at(place: Path) -> Pretrained:
    """Finds the model in its folder, a checkpoint's, or the folder of a run.

    Raises:
        UserError: there is none.
    """
    folder = in_run(place)
    if (folder / DESCRIPTION).is_file():
        return Pretrained(folder, read_origin(folder))
    raise UserError(
        f"{place}: no model here. Expected the `model` folder that pretraining prints at its end, "
        "a hub id, or what else --help lists."
    )


def check_input(place: Path, seen: str, config: NetworkConfig) -> None:
    """Refuses weights that were trained on another input than a model has.

    Raises:
        UserError: they were.
    """
    if seen != config.input:
        raise UserError(
            f"{place} was trained on model.input={seen}, and this model's is {config.input}. Leave "
            f"`model` at null to take the checkpoint's own architecture, or set model.input={seen}"
        )


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
