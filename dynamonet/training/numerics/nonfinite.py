"""A step whose loss or gradients are not finite: which layer it began in, and a file to replay it.

<run>/nonfinite/step-00000123/
  rank-0.safetensors     the rank's batch as the loader brought it
  rank-0.json            step, seed, samples (shard and key), loss, layers
  model.safetensors  model.json      the weights before the step; rank 0 writes them
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dynamonet.errors import UserError
from dynamonet.model.network import DynamoNet
from dynamonet.video.transforms import ClipBatch

Samples = Sequence[tuple[str, str]]  # tar and key of each
FOLDER = "nonfinite"
MAX_NAMED = 8  # layers and samples in a message
MAX_KEPT = 3  # replay folders of a run
REMEDY = (
    "Nothing was updated. Lower optimizer.lr, or set precision: fp32, or on_nonfinite: skip, with "
    "which the same run can continue; the last checkpoint is intact."
)


@dataclass(frozen=True)
class Replay:
    """One rank's part of a step that was not finite."""

    model: DynamoNet  # as it was before the step
    batch: ClipBatch
    facts: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, rank: int = 0) -> Replay:
        """Reads what `write_replay` wrote; nothing is unpickled.

        Raises:
            UserError: files are missing or damaged.
        """
        try:
            tensors = load_file(folder / f"rank-{rank}.safetensors")
            facts = json.loads((folder / f"rank-{rank}.json").read_text("utf-8"))
            colour = tensors.get("colour")
            batch = ClipBatch(tensors["pixels"], colour, tensors["label"], tensors["row"])
        except Exception as error:  # safetensors raises its own untyped errors
            raise UserError(f"{folder}: no step to replay: {error}") from None
        return cls(DynamoNet.from_pretrained(folder), batch, facts)

    def layers(self) -> list[str]:
        """Returns the layers whose output is not finite, in the order of the computation."""
        frames = self.batch.render()[:, :, : self.model.config.num_frames]
        with torch.no_grad(), watching(self.model.train()) as broken:
            self.model(frames)
        return broken


@dataclass(frozen=True)
class Findings:
    """What is not finite in a step of one rank, its own clips alone."""

    loss: float
    layers: tuple[str, ...]  # whose output is not finite, in the order of the computation
    gradients: tuple[str, ...]  # parameters, in the order of the model

    def facts(self) -> dict[str, Any]:
        return {"loss": repr(self.loss), "layers": self.layers, "gradients": self.gradients}

    def __bool__(self) -> bool:
        return not math.isfinite(self.loss) or bool(self.layers or self.gradients)

    def __str__(self) -> str:
        if self.layers:
            return f"loss {self.loss}; first not finite: the output of {self.layers[0]}"
        if not self.gradients:
            return f"loss {self.loss}, which all layers' outputs lead to"
        last = self.gradients[-1]  # the way back begins at the end
        return f"loss {self.loss}; first not finite on the way back: the gradient of {last}"


def diagnosis(told: Sequence[tuple[Findings, Samples]], step: int, folder: Path) -> str:
    """Names the ranks whose own clips gave what is not finite, with layer and samples.

    Args:
        told: What each rank found, and its clips.
    """
    guilty = [
        f"rank {rank}: {found}. Samples: {some([f'{shard} {key}' for shard, key in samples])}"
        for rank, (found, samples) in enumerate(told)
        if found
    ]
    text = ". ".join(guilty) or (
        "no rank found it again when it ran the step on its clips alone, so the cause lies in the "
        "sum over ranks, or in a device that does not compute the same twice"
    )
    return f"step {step}: loss or gradients not finite. {text}. To replay it: {folder}. "


def write_replay(
    home: Path,
    rank: int,
    batch: ClipBatch,
    facts: dict[str, Any],
    model: DynamoNet | None,
) -> Path:
    """Writes one rank's part of a step; returns its folder.

    Args:
        model: Rank 0 gives the model.
    """
    folder = home / FOLDER / f"step-{facts['step']:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"pixels": batch.pixels, "label": batch.label, "row": batch.row}
    if batch.colour is not None:
        tensors["colour"] = batch.colour
    plain = {name: value.cpu().contiguous() for name, value in tensors.items()}
    save_file(plain, folder / f"rank-{rank}.safetensors")
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    (folder / f"rank-{rank}.json").write_text(text + "\n", "utf-8")
    if model is not None:
        model.save_pretrained(folder)
    return folder


@contextmanager
def watching(model: nn.Module) -> Iterator[list[str]]:
    """Yields the layers whose output is not finite, in order, as the model runs in the block."""
    broken: list[str] = []
    hooks = []
    for name, layer in model.named_modules():
        if next(layer.children(), None) is None:

            def look(_: nn.Module, __: Any, out: Any, name: str = name) -> None:
                if isinstance(out, Tensor) and not bool(torch.isfinite(out).all()):
                    broken.append(name)

            hooks.append(layer.register_forward_hook(look))
    try:
        yield broken
    finally:
        for hook in hooks:
            hook.remove()


def broken_gradients(model: nn.Module) -> list[str]:
    """Returns the parameters whose gradients are not finite."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    ]


def some(names: list[str]) -> str:
    """Returns the first few of many names."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
