"""How a finished model says its classes: by its classifier, or by its nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dynamonet.errors import UserError
from dynamonet.model.files import read_description
from dynamonet.model.network import Output
from dynamonet.training.features import KnnBank, descriptor


@dataclass(frozen=True)
class Classes:
    """The classes of a finished model, and how likely it finds them."""

    names: list[str]  # in the order of training; empty: it has none
    neighbours: KnnBank | None = None  # which vote where there is no classifier

    @classmethod
    def of(cls, folder: Path, num_classes: int | None) -> Classes:
        """Reads them from a model's folder; numbers where a model was saved without names.

        Raises:
            UserError: there are more or fewer names than classes, or a file is damaged.
        """
        names = read_description(folder).get("classes", [])
        if num_classes is None:
            bank = KnnBank.read(folder)
            return cls(names if bank else [], bank)
        if names and len(names) != num_classes:
            raise UserError(
                f"{folder}: {len(names)} class names for a classifier of {num_classes}; model.json "
                "must list one name for each class, in the order of training"
            )
        return cls(names or [f"class {number}" for number in range(num_classes)])

    def __call__(self, output: Output) -> Tensor:
        """Returns probabilities (B, N) in double precision, on the CPU."""
        if self.neighbours is not None:
            return self.neighbours.votes(descriptor(output), len(self.names)).double()
        return softmax(output)


def softmax(output: Output) -> Tensor:
    """Returns the classifier's probabilities (B, N) in double precision, on the CPU."""
    assert output.logits is not None
    return output.logits.double().softmax(1).cpu()


def find_device(wanted: str) -> torch.device:
    """Returns the device that a setting means.

    Raises:
        UserError: there is no GPU.
    """
    there = torch.cuda.is_available()
    if wanted == "gpu" and not there:
        raise UserError("--device gpu: PyTorch finds no GPU here; expected one, or --device cpu")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")
