"""Other loaders of the same clips, as their own documentation uses them, and the bare decoder."""

from __future__ import annotations

import importlib
import itertools
import random
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from dynamonet.video.decode import open_video, video_stream

BATCH, FRAMES, SIDE, CANVAS = 8, 16, 112, 128
PROCESSES = 2
CLIPS = 480  # of each loader in each round


class Files(Dataset[Tensor]):
    """One segment a file; a subclass decodes it its own way, in its own processes."""

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, scale=(0.56, 1.0), ratio=(1.0, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.45] * 3, [0.225] * 3),
        ]
    )

    def __init__(self, files: list[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return CLIPS

    def __getitem__(self, index: int) -> Tensor:
        torch.set_num_threads(1)
        frames = self.decode(self.files[random.randrange(len(self.files))])
        return self.transform(frames).transpose(0, 1)  # (3, T, H, W)

    def decode(self, file: str) -> Tensor:
        """Returns frames (T, 3, H, W) uint8 from a random place."""
        raise NotImplementedError


class TorchCodec(Files):
    """torchcodec, the frames by their numbers."""

    def decode(self, file: str) -> Tensor:
        torchcodec: Any = importlib.import_module("torchcodec.decoders")
        decoder = torchcodec.VideoDecoder(file, num_ffmpeg_threads=1, seek_mode="approximate")
        first = random.randrange(len(decoder) - FRAMES + 1)
        return decoder.get_frames_in_range(first, first + FRAMES).data


class Decord(Files):
    """decord, the frames by their numbers."""

    def decode(self, file: str) -> Tensor:
        decord: Any = importlib.import_module("decord")
        reader = decord.VideoReader(file, num_threads=1)
        first = random.randrange(len(reader) - FRAMES + 1)
        frames = reader.get_batch(list(range(first, first + FRAMES))).asnumpy()
        return torch.from_numpy(frames).permute(0, 3, 1, 2)


class BareDecoder(Files):
    """PyAV alone: the same frames, decoded to YUV and thrown away."""

    def __getitem__(self, index: int) -> Tensor:
        data = Path(self.files[random.randrange(len(self.files))]).read_bytes()
        with open_video(data) as container:
            stream = video_stream(container)
            stream.thread_count = 1
            assert stream.average_rate is not None and stream.time_base is not None
            first = random.randrange(stream.frames - FRAMES + 1)
            ticks = 1 / (stream.average_rate * stream.time_base)
            if first:
                container.seek(int(first * ticks), stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.pts is not None and round(frame.pts / ticks) >= first + FRAMES - 1:
                    break
        return torch.zeros(1)


def from_spdl(files: list[str]) -> Callable[[], Iterable[Any]]:
    """SPDL: threads in this process, its own decoder, crop and scaling by FFmpeg's filters.

    It is given what it would have to look up: rate, length and size of each file.
    """
    known = [(file, *_video_facts(file)) for file in files]

    def start() -> Iterable[Any]:
        pipeline: Any = importlib.import_module("spdl.pipeline")
        builder = pipeline.PipelineBuilder().add_source(random.choices(known, k=CLIPS))
        builder = builder.pipe(_spdl_clip, concurrency=PROCESSES).aggregate(BATCH)
        made = builder.pipe(_spdl_batch).add_sink(4).build(num_threads=PROCESSES)
        with made.auto_stop():
            yield from made

    return start


def _video_facts(file: str) -> tuple[Fraction, int, int, int]:
    with open_video(file) as container:
        stream = video_stream(container)
        rate = Fraction(stream.average_rate or 25)
        return rate, stream.frames, stream.height, stream.width


def _spdl_clip(video: tuple[str, Fraction, int, int, int]) -> Any:
    io: Any = importlib.import_module("spdl.io")
    file, rate, total, height, width = video
    first = random.randrange(total - FRAMES + 1)
    between = Fraction(1, 2) / rate  # ends fall between frames
    window = max(Fraction(0), first / rate - between), (first + FRAMES) / rate - between
    side = int(min(height, width) * random.uniform(0.75, 1)) // 2 * 2
    top, left = (random.randrange(0, size - side + 1, 2) for size in (height, width))
    mirror = "hflip," if random.random() < 0.5 else ""
    packets = io.demux_video(file, timestamp=window)
    frames = io.decode_packets(
        packets,
        filter_desc=f"crop={side}:{side}:{left}:{top},{mirror}"
        f"scale={SIDE}:{SIDE}:flags=bilinear,format=pix_fmts=rgb24",
    )
    return io.to_torch(io.convert_frames(frames))[:FRAMES]


def _spdl_batch(clips: list[Tensor]) -> Tensor:
    pixels = torch.stack(clips).permute(0, 4, 1, 2, 3)
    return pixels.float().mul_(1 / (255 * 0.225)).sub_(0.45 / 0.225)


def from_files(kind: type[Files], files: list[str]) -> Callable[[], Iterable[Any]]:
    """Returns a function that starts one round of a loader."""
    data = kind(files)
    return lambda: DataLoader(
        data, BATCH, num_workers=PROCESSES, multiprocessing_context="forkserver"
    )


def from_pytorchvideo(files: list[str]) -> Callable[[], Iterable[Any]]:
    """pytorchvideo's LabeledVideoDataset with PyAV, as its tutorials use it."""

    def start() -> Iterable[Any]:
        loader = DataLoader(pytorchvideo_dataset(files), BATCH, num_workers=PROCESSES)
        return itertools.islice(loader, CLIPS // BATCH)

    return start


def pytorchvideo_dataset(files: list[str]) -> Any:
    from pytorchvideo.data import LabeledVideoDataset, make_clip_sampler

    sampler = make_clip_sampler("random", FRAMES / frame_rate(files[0]))
    paths: Any = [(file, {"label": 0}) for file in files * (1 + CLIPS // len(files))]
    return LabeledVideoDataset(paths, sampler, transform=of_pytorchvideo, decode_audio=False)


def of_pytorchvideo(sample: dict[str, Any]) -> Tensor:
    """Takes 16 frames of a clip and transforms them."""
    torch.set_num_threads(1)
    video = sample["video"]  # (3, T, H, W)
    chosen = torch.linspace(0, video.shape[1] - 1, FRAMES).long()
    frames = video[:, chosen].transpose(0, 1).to(torch.uint8)
    return Files.transform(frames).transpose(0, 1)


def frame_rate(file: str) -> float:
    with open_video(file) as container:
        return float(video_stream(container).average_rate or 25)


def installed(kind: type[Files], files: list[str]) -> bool:
    """Tells whether a loader works here; says why not."""
    try:
        kind(files)[0]
    except Exception as error:  # a missing package, or one that finds no FFmpeg
        print(f"left out: {kind.__doc__} {type(error).__name__}: {str(error).splitlines()[0]}")
        return False
    return True
