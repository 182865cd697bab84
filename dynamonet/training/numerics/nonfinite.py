"""A step whose loss or gradients are not finite: which layer it began in, and a file to replay it.

<run>/nonfinite/step-00000123/
  rank-0.safetensors     the rank's batch as the loader brought it
  rank-0.json            step, seed, samples (shard and key), loss, layers
  model.safetensors  model.json      the weights before the step; rank 0 writes them
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dynamonet.errors import UserError
from dynamonet.model.network import DynamoNet
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.numerics.precision import Precision
from dynamonet.video.transforms import ClipBatch

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
        frames = self.batch.render()
        return broken_layers(self.model.train(), frames[:, :, : self.model.config.num_frames])


def diagnose(
    home: Path,
    rank: Rank,
    model: DynamoNet,
    precision: Precision,
    batch: ClipBatch,
    facts: dict[str, Any],
    *,
    micro_batch: int,
    torch_seed: int,
) -> str:
    """Writes a rank's part of a step that was not finite; returns what is wrong with it.

    Args:
        facts: step, seed, samples, loss and gradient_norm, see `Replay`.
        torch_seed: Of the randomness within the step's first part.
    """
    gradients = broken_gradients(model)
    torch.manual_seed(torch_seed)
    layers: list[str] = []
    for part in batch.parts(micro_batch):
        frames = part.to(rank.device).render()
        with precision.autocast():
            layers = layers or broken_layers(model, frames[:, :, : model.config.num_frames])
    facts = {**facts, "rank": rank.index, "layers": layers, "gradients": gradients}
    folder = write_replay(home, rank.index, batch, facts, model if rank.is_main else None)
    where = f"; first not finite: the output of {layers[0]}" if layers else ""
    where = where or (f"; first not finite: gradients of {some(gradients)}" if gradients else "")
    samples = some([f"{shard} {key}" for shard, key in facts["samples"]])
    return (
        f"step {facts['step']}: loss {facts['loss']}, gradient norm {facts['gradient_norm']}: not "
        f"finite on rank {rank.index}{where}. Samples: {samples}. To replay it: {folder}. "
    )


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


def broken_layers(model: nn.Module, clip: Tensor) -> list[str]:
    """Runs a model forward and returns the layers whose output is not finite, in order.

    Batch norm's running statistics change, as in any pass in training mode.
    """
    broken: list[str] = []
    hooks = []
    for name, layer in model.named_modules():
        if next(layer.children(), None) is None:

            def look(_: nn.Module, __: Any, out: Any, name: str = name) -> None:
                if isinstance(out, Tensor) and not bool(torch.isfinite(out).all()):
                    broken.append(name)

            hooks.append(layer.register_forward_hook(look))
    try:
        with torch.no_grad():
            model(clip)
    finally:
        for hook in hooks:
            hook.remove()
    return broken


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
