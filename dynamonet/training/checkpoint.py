"""Checkpoints: weights (safetensors), a JSON that rebuilds the model, optimiser and loop state.

<checkpoint>/
  model.safetensors  model.json      as DynamoNet.save_pretrained writes them
  optimizer.pt                       loaded with weights_only, nothing is unpickled freely
  state.json                         step, samples seen, sums of the epoch so far, digests
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dynamonet.errors import UserError
from dynamonet.model.files import WEIGHTS_DIGEST, read_description, read_weights
from dynamonet.model.network import DynamoNet
from dynamonet.origin import Origin

OPTIMIZER, STATE = "optimizer.pt", "state.json"


@dataclass
class LoopState:
    """Where a training stands; with the seed it fixes everything that comes after."""

    step: int = 0  # steps done
    samples: int = 0  # clips seen, over all ranks and epochs
    global_batch: int = 0
    dataset_digest: str = ""
    epoch_sums: dict[str, float] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    model: DynamoNet,
    optimizer: torch.optim.Optimizer,
    state: LoopState,
    extra: dict[str, Any],
) -> None:
    """Writes a checkpoint into an empty folder."""
    model.save_pretrained(folder, extra=extra)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    (folder / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n", "utf-8")


def load_checkpoint(folder: Path, model: DynamoNet, optimizer: torch.optim.Optimizer) -> LoopState:
    """Fills model and optimiser from a checkpoint and returns where the training stood.

    Raises:
        UserError: the checkpoint is damaged, or belongs to another architecture.
    """
    saved = read_description(folder)["model"]
    own = model.config.model_dump(mode="json")
    if saved != own:
        raise UserError(
            f"{folder}: a checkpoint of another architecture: {differences(saved, own)}. "
            "Start anew with --no-resume, or set the model as it was."
        )
    model.load_state_dict(read_weights(folder))
    try:
        optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True))
        return LoopState(**json.loads((folder / STATE).read_text("utf-8")))
    except Exception as error:  # torch.load raises many kinds for damaged files
        raise UserError(f"{folder}: damaged: {error}") from None


def read_origin(folder: Path) -> Origin | None:
    """Reads which run made a model, and notes the model and its weights' digest in the record."""
    description = read_description(folder)
    origin = Origin.read(description.get("run"))
    digest = str(description.get(WEIGHTS_DIGEST, ""))
    return origin and replace(origin, model=str(folder), weights=digest)


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> str:
    """Names the settings in which two model descriptions differ, as `key: a -> b`."""
    parts = []
    for key in sorted({*a, *b}):
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            parts.append(differences(left, right, f"{prefix}{key}."))
        elif left != right:
            parts.append(f"{prefix}{key}: {left} -> {right}")
    return ", ".join(part for part in parts if part)
