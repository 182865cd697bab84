"""A finished model on its device, and how it says its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from dynamonet.errors import UserError
from dynamonet.model.config import ModelConfig, PixelScale
from dynamonet.model.files import read_description
from dynamonet.model.network import DynamoNet
from dynamonet.settings import validate
from dynamonet.shards.settings import ClipSettings, FrameSettings
from dynamonet.training.numerics.precision import forward_precision
from dynamonet.training.perf.allocator import keep_freed_memory
from dynamonet.training.settings import FormatName
from dynamonet.training.start import transfer
from finetune.pretrained.load import (
    digest_of_weights,
    is_foreign,
    pretrained_config,
    pretrained_weights,
    weights_at,
)


def class_names(folder: Path, description: dict[str, Any], num_classes: int | None) -> list[str]:
    """Returns a model's classes in the order of training; numbers where it was saved without names.

    Raises:
        UserError: there are more or fewer names than classes.
    """
    names = description.get("classes", []) if num_classes is not None else []
    if names and len(names) != num_classes:
        raise UserError(
            f"{folder}: {len(names)} class names for a classifier of {num_classes}; model.json "
            "must list one name for each class, in the order of training"
        )
    return names or [f"class {number}" for number in range(num_classes or 0)]


class FinishedModel:
    """A model on its device, with all that was saved beside it about its input and its classes."""

    def __init__(
        self,
        place: str,
        *,
        pixel_scale: PixelScale | None = None,
        device: Literal["auto", "cpu", "gpu"] = "auto",
        precision: FormatName = "auto",
    ) -> None:
        """Loads a model.

        Args:
            place: The model's folder or its run's, its hub id, or weights that others trained.
            pixel_scale: Of pixels that others trained on; None = as they usually do.
            device: auto = a GPU where there is one.
            precision: Of the trunk; auto = as in training.

        Raises:
            UserError: no model there, its description is damaged, or there is no GPU.
        """
        keep_freed_memory()
        self.found = weights_at(place)
        self.folder = self.found.folder
        self.device = find_device(device)
        config = pretrained_config(self.folder, pixel_scale)
        self.digest = digest_of_weights(self.folder, config.pixel_scale)
        if is_foreign(self.folder):
            description: dict[str, Any] = {}
            model = DynamoNet(ModelConfig.of(config, reads="features"))  # it brings no filters
            transfer(model, pretrained_weights(self.folder, config), 1.0)
        else:
            description = read_description(self.folder)
            model = DynamoNet.from_pretrained(self.folder)
        origin = str(self.folder)
        self.clips = validate(ClipSettings, description.get("clips", {}), origin=origin)
        self.frames = validate(FrameSettings, description.get("frames", {}), origin=origin)
        model = model.eval().to(self.device)
        self.model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.precision = forward_precision(self.model, precision, self.device)
        self.config = model.config
        self.classes = class_names(self.folder, description, self.config.num_classes)


def find_device(wanted: str) -> torch.device:
    """Returns the device that a setting means.

    Raises:
        UserError: there is no GPU.
    """
    there = torch.cuda.is_available()
    if wanted == "gpu" and not there:
        raise UserError("--device gpu: PyTorch finds no GPU here; expected one, or --device cpu")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")
