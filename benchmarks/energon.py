"""Megatron-Energon on the tars of a shard set, as its documentation sets it up."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.loaders import BATCH, CLIPS, FRAMES, PROCESSES, Files
from dynamonet.errors import need

SHUFFLED = 100  # samples in its buffer


def prepare(shard_set: str, folder: Path) -> Path:
    """Makes a folder in which Energon finds the tars of a set, and lets it index them."""
    folder.mkdir()
    for tar in Path(shard_set).glob("*.tar"):
        (folder / tar.name).symlink_to(tar)
    program = Path(sys.executable).with_name("energon")
    words = ["--non-interactive", "--split-parts", "train:.*\\.tar", "--sample-type"]
    done = subprocess.run(
        [str(program), "prepare", *words, "CrudeWebdataset", str(folder)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"energon prepare: {done.stdout}{done.stderr}")
    return folder


def loader(
    folder: Path,
    *,
    ranks: int = 1,
    rank: int = 0,
    processes: int = PROCESSES,
    batch_size: int = BATCH,
    decodes: bool = True,
) -> Any:
    """Returns its loader with saved and restored state, of clips or of the samples' keys."""
    energon = need("megatron.energon", "bench", "Megatron-Energon reads beside this reader")
    workers = energon.WorkerConfig(rank=rank, world_size=ranks, num_workers=processes)

    class Encoder(energon.DefaultTaskEncoder):  # type: ignore[name-defined,misc]
        cookers = (energon.Cooker(energon.stateless(_clip if decodes else _key)),)
        decoder = energon.SampleDecoder() if decodes else None

        @energon.stateless
        def batch(self, samples: list[Any]) -> Any:
            values = [sample["value"] for sample in samples]
            return torch.stack(values) if decodes else values

    data = energon.get_train_dataset(
        folder,
        worker_config=workers,
        batch_size=batch_size,
        shuffle_buffer_size=SHUFFLED,
        max_samples_per_sequence=SHUFFLED,
        task_encoder=Encoder(),
    )
    return energon.get_savable_loader(data, worker_config=workers)


def clips(folder: Path) -> Callable[[], Iterable[Any]]:
    """Returns a function that starts one round of clips."""

    def start() -> Iterator[Any]:
        return itertools.islice(loader(folder), CLIPS // BATCH)

    return start


def _clip(sample: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    video = sample["mp4"]
    total = round(video.get_video_duration()[0] * video.get_video_fps())
    first = random.randrange(max(1, total - FRAMES + 1))
    (frames,), _ = video.get_video_clips([(first, first + FRAMES - 1)], "frames")
    clip: Tensor = Files.transform(frames[:FRAMES])
    return {**_about(sample), "value": clip.transpose(0, 1)}


def _key(sample: dict[str, Any]) -> dict[str, Any]:
    return {**_about(sample), "value": sample["__key__"]}


def _about(sample: dict[str, Any]) -> dict[str, Any]:
    return need("megatron.energon", "bench", "").basic_sample_keys(sample)
