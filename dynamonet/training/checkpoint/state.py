"""What a checkpoint holds: weights (safetensors), a JSON that rebuilds the model, training state.

<checkpoint>/
  model.safetensors  model.json      the model as it is used: its moving average where that is on
  training.pt                        optimiser, loss scaler and, beside an average, the weights that
                                     are trained; loaded with weights_only
  state.json                         step, samples seen, sums of the epoch so far
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dynamonet.errors import UserError
from dynamonet.model.config import ModelConfig
from dynamonet.model.files import WEIGHTS_DIGEST, read_description, read_weights, write_model
from dynamonet.model.network import DynamoNet
from dynamonet.settings import validate
from dynamonet.tracking.origin import Origin

TRAINING, STATE = "training.pt", "state.json"


@dataclass
class LoopState:
    """Where a training stands; with the seed it fixes everything that comes after."""

    step: int = 0  # steps done
    total_steps: int = 0
    minutes: float = 0.0  # trained for, evaluations and checkpoints included
    samples: int = 0  # clips seen, over all ranks and epochs
    global_batch: int = 0
    micro_batch: int = 0  # clips that went through the model at once: batch norm depends on it
    format: str = ""  # of numbers: bf16, fp16 or fp32
    skipped: int = 0  # steps whose loss or gradients were not finite
    damaged: int = 0  # samples of the epoch so far that could not be decoded, over all ranks
    epoch_sums: dict[str, float] = field(default_factory=dict)
    unmeasured: bool = False  # a stop broke this step's evaluation off
    # metrics that had not reached the tracking store, by step
    unsent: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class MovingAverage:
    """An exponential moving average of a model's weights; its buffers are the model's.

    PyTorch's `AveragedModel` asks the device at every step how many there were; this one counts.
    """

    module: DynamoNet
    decay: float
    steps: int = 0

    @classmethod
    def of(cls, model: DynamoNet, decay: float) -> MovingAverage:
        return cls(copy.deepcopy(model), decay)

    @torch.no_grad()
    def update(self, model: DynamoNet) -> None:
        """Takes the model's weights in; the first ones as they are."""
        own: list[Tensor] = [*self.module.parameters()]
        given: list[Tensor] = [*model.parameters()]
        average = get_ema_multi_avg_fn(self.decay if self.steps else 0.0)
        average(own, given, None)
        for kept, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)
        self.steps += 1


@dataclass(frozen=True)
class TrainState:
    """All that a training changes and a checkpoint must bring back."""

    model: DynamoNet
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: MovingAverage | None = None

    @property
    def result(self) -> DynamoNet:
        """The model that is measured and kept."""
        return self.model if self.average is None else self.average.module

    @property
    def parameters(self) -> int:
        """The number of the model's parameters."""
        return sum(each.numel() for each in self.model.parameters())


def snapshot(
    train_state: TrainState, state: LoopState, extra: dict[str, Any]
) -> Callable[[Path], None]:
    """Copies everything to main memory and returns a function that writes it to a folder."""
    result = train_state.result
    weights, head = _kept_and_head(result)
    weights = _copied(weights)
    description = {"model": result.config.model_dump(mode="json"), **extra}
    training: dict[str, Any] = {
        "optimizer": train_state.optimizer.state_dict(),
        "scaler": train_state.scaler.state_dict(),
        "head": head,
    }
    if train_state.average is not None:
        training["model"] = train_state.model.state_dict()
        training["averaged"] = train_state.average.steps
    training, numbers = _copied(training), asdict(state)

    def write(folder: Path) -> None:
        write_model(folder, weights, description)
        torch.save(training, folder / TRAINING)
        (folder / STATE).write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")

    return write


def load_checkpoint(folder: Path, train_state: TrainState) -> LoopState:
    """Fills what is trained from a checkpoint and returns where the training stood.

    Raises:
        UserError: the checkpoint is damaged, or belongs to another architecture.
    """
    described = validate(ModelConfig, read_description(folder)["model"], origin=str(folder))
    model = train_state.model
    kept = _places(described.beside, model.config.beside)
    if kept is not None and len(kept) < len(model.beside):
        model.keep_beside(kept)
    saved, own = (c.model_dump(mode="json") for c in (described, model.config))
    if saved != own:
        raise UserError(
            f"{folder}: the checkpoint has another architecture: {differences(saved, own)}. "
            "Start again with --resume false, or set the model as it was."
        )
    weights = read_weights(folder)
    try:
        training = torch.load(folder / TRAINING, weights_only=True, map_location="cpu")
        train_state.result.load_state_dict(weights | training.get("head", {}))
        train_state.optimizer.load_state_dict(training["optimizer"])
        _lay_out(train_state.optimizer)
        if train_state.scaler.is_enabled():
            train_state.scaler.load_state_dict(training["scaler"])
        if train_state.average is not None:
            train_state.model.load_state_dict(training["model"])
            train_state.average.steps = int(training["averaged"])
    except Exception as error:  # torch.load raises many kinds for damaged files
        raise UserError(f"{folder}: damaged: {error}") from None
    return read_state(folder)


def _kept_and_head(model: DynamoNet) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the weights of a model, and those of a head that only its training needs."""
    weights = model.state_dict()
    if model.config.num_classes is not None:
        return weights, {}
    head = {name: value for name, value in weights.items() if name.startswith("classifier.")}
    return {name: value for name, value in weights.items() if name not in head}, head


def _places(some: Sequence[ModelConfig], of: Sequence[ModelConfig]) -> list[int] | None:
    """Returns where the networks that a checkpoint has kept stand among those it had."""
    places, left = list[int](), iter(enumerate(of))
    for wanted in some:
        places += [next((place for place, each in left if each == wanted), -1)]
    return None if -1 in places else places


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Gives each moment the memory layout of its parameter, see `make_optimizer`."""
    for parameter, held in optimizer.state.items():
        for name, value in held.items():
            if value.shape == parameter.shape:
                held[name] = torch.empty_like(parameter).copy_(value)


def read_state(folder: Path) -> LoopState:
    """Reads where a training stood.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return LoopState(**json.loads((folder / STATE).read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / STATE}: damaged: {error}") from None


def _copied(tree: Any) -> Any:
    """Copies a tree of dicts and lists with its tensors, those to main memory."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_copied(value) for value in tree]
    return tree


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
