"""What a frozen network makes of the clips of a labelled set, computed once and kept on disk.

<runs>/features/<digest>/
  about.json    how far it has come, and in how many seconds
  pooled.npy    (V, 2 D) float32, mean and deviation of the features over time and space
  motion.npy    (V, M) float32, what a classifier reads beside them
  weights.npy   (V,) float32, how much each counts in the mean of its video
  cells.npy     (V, D, t, h, w) float16, for attentive probes alone
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional as F

from dynamonet.digest import digest_of_bytes
from dynamonet.errors import UserError
from dynamonet.model.classifier import mean_and_std
from dynamonet.model.network import DynamoNet, Output
from dynamonet.shards.order import Request
from dynamonet.storage import atomic_file
from dynamonet.training.measuring import Measuring
from dynamonet.training.numerics.precision import forward_precision
from dynamonet.training.perf.allocator import keep_freed_memory
from dynamonet.training.run_folder import stage_folder
from finetune.evaluation.finished import find_device
from finetune.pretrained.load import digest_of_weights
from finetune.train.objective import Finetuning

MOST_CELLS = (8, 7, 7)  # of a feature map in time, height and width; larger ones are averaged
ABOUT = "about.json"
FORMAT = 2  # 1: the mean alone, no weights; such folders are not read


@dataclass(frozen=True)
class KeptFeatures:
    """The views of some rows of a set, V in all, those of a row side by side."""

    rows: NDArray[np.int64]  # (V,)
    pooled: NDArray[np.float32]  # (V, 2 D)
    motion: NDArray[np.float32]  # (V, M)
    weights: NDArray[np.float32]  # (V,), see `ViewPlan.weights`
    cells: NDArray[np.float16] | None  # (V, D, t, h, w)
    seconds: float  # that computing them took

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the views of some rows."""
        return np.flatnonzero(np.isin(self.rows, rows))

    def maps(self, views: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns the feature maps (B, D, t, h, w) of some views, and motion (B, M)."""
        assert self.cells is not None
        cells = torch.from_numpy(self.cells[views]).float()
        return cells.to(device), torch.from_numpy(self.motion[views]).to(device)

    def pools(self, views: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns mean and deviation of the maps (B, 2 D) of some views, and motion (B, M)."""
        pooled, motion = torch.from_numpy(self.pooled[views]), torch.from_numpy(self.motion[views])
        return pooled.to(device), motion.to(device)


def keep_features(
    task: Finetuning, rows: NDArray[np.int64], *, cells: bool, batch_clips: int, console: Console
) -> KeptFeatures:
    """Computes the features of some rows, or what is left of them; those that are kept are read.

    Args:
        task: With the network, the set, and how each segment is looked at.
        cells: Keep the feature maps, of at most `MOST_CELLS`.

    Raises:
        UserError: see `Finetuning.build_model`; or the folder cannot be written.
    """
    folder = _folder(task, rows, cells=cells)
    requests = [request for row in rows.tolist() for request in task.views.requests(row)]
    views = np.array([request.row for request in requests], np.int64)
    names = ("pooled", "motion", "weights", *["cells"] * cells)
    if _how_far(folder)[0] < len(requests):
        _compute(task, rows, requests, folder, names, batch_clips, console)
    _, seconds = _how_far(folder)
    kept = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    plain = kept["pooled"], kept["motion"], kept["weights"]
    return KeptFeatures(views, *plain, kept.get("cells"), seconds)


def _compute(
    task: Finetuning,
    rows: NDArray[np.int64],
    requests: list[Request],
    folder: Path,
    names: tuple[str, ...],
    batch_clips: int,
    console: Console,
) -> None:
    """Computes the views that are left, and notes down how far it has come."""
    keep_freed_memory()
    model = task.build_model().eval()
    device = find_device(task.settings.device)
    precision = forward_precision(model, task.settings.precision, device)
    model = model.to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    measuring = Measuring.alone(device, precision, batch_clips, task.settings.loader.processes)
    done, seconds = _how_far(folder)
    columns = TextColumn("features"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    arrays: dict[str, Any] = dict.fromkeys(names)
    count, cells = len(requests), "cells" in names
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=count, completed=done)
        began = time.monotonic()
        for batch in measuring.batches(task.reader(rows), requests[done:]):
            frames = batch.render()[:, :, : model.config.num_frames]
            found = _look(model, frames, precision, cells)
            found["weights"] = task.views.weights(frames).cpu().numpy()
            for name, values in found.items():
                if arrays[name] is None:
                    arrays[name] = _open(folder / f"{name}.npy", count, values, new=not done)
                arrays[name][done : done + len(values)] = values
            done += len(batch)
            for array in arrays.values():
                array.flush()
            _write_about(folder, done, seconds + time.monotonic() - began)
            progress.update(bar, completed=done)


@torch.no_grad()
def _look(model: DynamoNet, frames: Tensor, precision: Any, cells: bool) -> dict[str, NDArray[Any]]:
    with precision.autocast():
        output: Output = model(frames, predict_frames=False)
    maps = output.features.float()
    found = {"pooled": mean_and_std(maps), "motion": output.motion.float()}
    if cells:
        t, h, w = (min(pair) for pair in zip(maps.shape[2:], MOST_CELLS, strict=True))
        found["cells"] = F.adaptive_avg_pool3d(maps, (t, h, w)).half()
    return {name: value.cpu().numpy() for name, value in found.items()}


def _folder(task: Finetuning, rows: NDArray[np.int64], *, cells: bool) -> Path:
    """Returns the folder of such features, made if missing; its name says what they depend on."""
    assert task.pretrained is not None
    place, settings = Path(task.pretrained), task.settings
    about = {
        "format": FORMAT,
        "weights": digest_of_weights(place, task.architecture.pixel_scale),
        "model": task.architecture.model_dump(mode="json"),
        "reads": task.classifier_config().reads,
        "shards": task.data.digest,
        "rows": digest_of_bytes(rows.tobytes()),
        "clips": settings.clips.model_dump(mode="json"),
        "views": [task.views.clips, task.views.crops],
        "precision": settings.precision,
        "cells": cells and MOST_CELLS,
    }
    digest = digest_of_bytes(json.dumps(about, sort_keys=True).encode())
    folder = stage_folder(settings, "features") / digest
    folder.mkdir(exist_ok=True)
    return folder


def _open(file: Path, count: int, like: NDArray[Any], *, new: bool) -> NDArray[Any]:
    shape = count, *like.shape[1:]
    if new:
        return np.lib.format.open_memmap(file, "w+", like.dtype, shape)
    found = np.lib.format.open_memmap(file, "r+")
    if found.shape != shape:
        raise UserError(f"{file}: {found.shape}, expected {shape}; remove {file.parent}")
    return found


def _how_far(folder: Path) -> tuple[int, float]:
    """Returns how many views are done, and in how many seconds."""
    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        return int(about["views"]), float(about["seconds"])
    except FileNotFoundError:
        return 0, 0.0
    except (ValueError, KeyError) as error:
        raise UserError(f"{folder / ABOUT}: damaged: {error}; remove {folder}") from None


def _write_about(folder: Path, views: int, seconds: float) -> None:
    with atomic_file(folder / ABOUT) as growing:
        growing.write_text(json.dumps({"views": views, "seconds": round(seconds, 3)}), "utf-8")
