"""Clips per second: this reader, the bare decoder, and other loaders on the same segments.

    make bench-data                  on rendered videos
    VIDEOS=DIR make bench-data       on your own

Each loader gives batches of 8 clips of 16 x 112 x 112, RGB, normalised, randomly placed, cropped
and mirrored, on the same number of processes. They are run in turns. torchcodec and decord take
part where they are installed: pip install -e '.[bench]', and FFmpeg's libraries for torchcodec.
"""

from __future__ import annotations

import importlib
import itertools
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.report import Figure, ratio, show, table
from dynamonet.shards.index import ShardSet
from dynamonet.shards.reader import ClipReader, TrainingOrder, batches
from dynamonet.shards.settings import ClipSettings, LoaderSettings
from dynamonet.video.decode import open_video, video_stream
from dynamonet.video.transforms import render

BATCH, FRAMES, SIDE, CANVAS = 8, 16, 112, 128
PROCESSES = 2
CLIPS = 480  # of each loader in each round
WARM_UP = 8  # batches that are not counted: processes start, queues fill
ROUNDS = 3
LONG_RUN = 20_000  # clips over which memory is watched


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


def from_shards(path: str) -> Callable[[], Iterable[Any]]:
    """This project's reader, the rendering of batches included."""
    source = reader(path)
    return lambda: rendered(source, CLIPS)


def reader(path: str) -> ClipReader:
    shards = ShardSet.open(path)
    return ClipReader(
        shards,
        shards.rows(),
        ClipSettings(canvas_px=CANVAS),
        num_frames=FRAMES,
        loop_short=False,
        eval_side=SIDE / CANVAS,
    )


def rendered(source: ClipReader, clips: int, processes: int = PROCESSES) -> Iterator[Tensor]:
    plan = source.plan(LoaderSettings(batch_size=BATCH), 1, 0)
    order = TrainingOrder(source.rows, plan, 0, 0, clips // BATCH)
    for batch in batches(source, order, processes=processes, prefetch=2):
        yield render(batch, SIDE)


def installed(kind: type[Files], files: list[str]) -> bool:
    """Tells whether a loader works here; says why not."""
    try:
        kind(files)[0]
    except Exception as error:  # a missing package, or one that finds no FFmpeg
        print(f"left out: {kind.__doc__} {type(error).__name__}: {str(error).splitlines()[0]}")
        return False
    return True


def speed(path: str, files: list[str]) -> tuple[Table, list[Figure]]:
    """Runs all loaders in turns."""
    loaders: dict[str, Callable[[], Iterable[Any]]] = {"this reader": from_shards(path)}
    loaders["bare decoder, frames thrown away"] = from_files(BareDecoder, files)
    loaders["pytorchvideo LabeledVideoDataset, PyAV"] = from_pytorchvideo(files)
    for name, kind in (("torchcodec + torchvision v2", TorchCodec), ("decord + v2", Decord)):
        if installed(kind, files):
            loaders[name] = from_files(kind, files)
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(ROUNDS):
        for name, start in loaders.items():
            seconds[name].append(seconds_a_clip(start))
    own = seconds["this reader"]
    made = table(
        f"Clips of {FRAMES} x {SIDE} x {SIDE}, {PROCESSES} loader processes",
        "",
        "clips/s",
        "this reader by it",
    )
    for name, times in seconds.items():
        made.add_row(name, f"{1 / statistics.median(times):.0f}", f"{ratio(times, own):.2f}")
    targets = {"bare decoder, frames thrown away": ("of_bare_decoder", 0.8)}
    targets["pytorchvideo LabeledVideoDataset, PyAV"] = ("over_pytorchvideo", 4)
    targets["torchcodec + torchvision v2"] = ("over_torchcodec", 1.5)
    targets["decord + v2"] = ("over_decord", 1.5)
    return made, [
        Figure(f"reader_{targets[name][0]}", ratio(times, own), targets[name][1])
        for name, times in seconds.items()
        if name in targets
    ]


def seconds_a_clip(start: Callable[[], Iterable[Any]]) -> float:
    """Returns the time of a clip once the loader's processes have started."""
    loader = iter(start())
    for _ in range(WARM_UP):
        next(loader)
    before, count = time.perf_counter(), 0
    for _ in loader:
        count += BATCH
    return (time.perf_counter() - before) / count


def memory(path: str, picture: Path) -> tuple[Table, list[Figure]]:
    """Watches the memory of reader and loader process over many clips, and draws it."""
    from matplotlib.figure import Figure as Picture

    source, clips, held = reader(path), [], []
    for number, _ in enumerate(rendered(source, LONG_RUN, processes=1)):
        if number % 50 == 0:
            family = [psutil.Process(), *psutil.Process().children(recursive=True)]
            clips.append(number * BATCH)
            held.append(sum(process.memory_info().rss for process in family) / 1e6)
    figure = Picture(figsize=(7, 3), layout="constrained")
    axis = figure.subplots()
    axis.plot(clips, held)
    axis.set(xlabel="clips", ylabel="resident MB", ylim=(0, None))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)
    early, late = (statistics.median(part) for part in (held[5 : len(held) // 4], held[-20:]))
    made = table(f"Resident memory over {LONG_RUN:,} clips", "", "MB")
    made.add_row(f"clips {clips[5]:,} to {clips[len(held) // 4]:,}", f"{early:.0f}")
    made.add_row(f"the last {20 * 50 * BATCH:,}", f"{late:.0f}")
    made.caption = f"drawn in {picture}"
    return made, [Figure("memory_growth", late / early, 1.05, at_least=False)]


def waiting(path: str, folder: Path) -> tuple[Table, list[Figure]]:
    """Trains the default configuration for some steps and reads the share of time spent waiting."""
    from mlflow import MlflowClient

    from pretrain import run

    words = f"--shards {path} --runs {folder}/runs --loader.batch_size 8 --max_steps 24 "
    words += "--log_every_steps 4 --evaluate_every_steps 1000 --holdout_share 0"
    done = run.main(words.split())
    history = MlflowClient(done.run.uri).get_metric_history(
        done.run.run_id, "train/data_wait_share"
    )
    share = statistics.median(m.value for m in history[1:])  # the first holds the loader's start
    made = table("Training the default configuration", "", "share of time")
    made.add_row("waiting for data", f"{share:.1%}")
    return made, [Figure("data_wait_share", share, 0.03, at_least=False)]


def make_shards(videos: Path, folder: Path) -> str:
    """Makes shards of a folder of videos, and one file of each segment for the other loaders."""
    from data_prep import shard

    shard.main(f"--source {videos} --output {folder}/set --runs {folder}/runs".split())
    return str(folder / "set")


def segment_files(path: str, folder: Path) -> list[str]:
    shards = ShardSet.open(path)
    source, files = reader(path), []
    folder.mkdir()
    for row in source.rows[:200]:
        file = folder / f"{shards.table['key'][int(row)].as_py()}.mp4"
        file.write_bytes(source.tars.read(*place(shards, int(row))))
        files.append(str(file))
    return files


def place(shards: ShardSet, row: int) -> tuple[str, int, int]:
    columns = shards.columns
    name = shards.table["shard"][row].as_py()
    return name, int(columns["offset"][row]), int(columns["size"][row])


def render_videos(folder: Path, count: int = 60) -> None:
    """Writes textures that drift: 10 s of 25 frames/s at 228 x 128."""
    import av

    folder.mkdir()
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        noise = rng.integers(-12, 13, (320, 480, 3))
        picture = (np.kron(coarse, np.ones((8, 8, 1))) + noise).clip(0, 255).astype(np.uint8)
        dy, dx = rng.integers(-3, 4, 2)
        with av.open(str(folder / f"{number:03d}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 228, 128, "yuv420p"
            for t in range(250):
                moved = np.roll(picture, (t * dy, t * dx), (0, 1))[:128, :228]
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(moved))
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


def main() -> None:
    """Prints the tables and the figures."""
    from dynamonet import cluster

    folder = Path(tempfile.mkdtemp(prefix="bench-data-"))
    try:
        videos = os.environ.get("VIDEOS")
        if not videos:
            render_videos(folder / "videos")
        with cluster.connected():
            path = make_shards(Path(videos or folder / "videos"), folder)
            waits = waiting(path, folder)
        files = segment_files(path, folder / "files")
        picture = Path("runs/benchmarks/reader_memory.png").absolute()
        parts = [speed(path, files), waits, memory(path, picture)]
    finally:
        shutil.rmtree(folder)
    show([made for made, _ in parts], [f for _, figures in parts for f in figures])


if __name__ == "__main__":
    main()
