"""Clips per second: this reader, the bare decoder, and other loaders on the same segments.

    make bench-data                  on rendered videos
    VIDEOS=DIR make bench-data       on your own

Each loader gives batches of 8 clips of 16 x 112 x 112, RGB, normalised, randomly placed, cropped
and mirrored, on the same number of processes, or threads. They are run in turns. All but
pytorchvideo take part where they are installed: pip install -e '.[bench]', and FFmpeg's libraries
for torchcodec.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from rich.table import Table
from torch import Tensor

from benchmarks import energon
from benchmarks.loaders import (
    BATCH,
    CANVAS,
    CLIPS,
    FRAMES,
    PROCESSES,
    SIDE,
    BareDecoder,
    Decord,
    TorchCodec,
    from_files,
    from_pytorchvideo,
    from_spdl,
    installed,
)
from benchmarks.report import Figure, ratio, show, table
from dynamonet.shards import index
from dynamonet.shards.card import write_card
from dynamonet.shards.loading import batches
from dynamonet.shards.order import TrainingOrder
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.settings import ClipSettings, LoaderSettings
from dynamonet.shards.shard_set import ShardSet
from dynamonet.storage import Folder
from dynamonet.video.transforms import ClipBatch

WARM_UP = 8  # batches that are not counted: processes start, queues fill
ROUNDS = 3
LONG_RUN = 20_000  # clips over which memory is watched


def from_shards(path: str, *, rendering: bool) -> Callable[[], Iterable[Any]]:
    """This project's reader, with or without the rendering that the training device does."""
    source = reader(path)
    return lambda: rendered(source, CLIPS) if rendering else batches_of(source, CLIPS)


def reader(path: str) -> ClipReader:
    shards = ShardSet.open(path)
    return ClipReader(
        shards,
        shards.rows(),
        ClipSettings(canvas_px=CANVAS),
        num_frames=FRAMES,
        frame_px=SIDE,
        loop_short=False,
    )


def batches_of(source: ClipReader, clips: int, processes: int = PROCESSES) -> Iterator[ClipBatch]:
    plan = source.plan(LoaderSettings(batch_size=BATCH), 1, 0)
    order = TrainingOrder(source.rows, plan, 0, 0, clips // BATCH)
    return batches(source, order, processes=processes, prefetch=2)


def rendered(source: ClipReader, clips: int, processes: int = PROCESSES) -> Iterator[Tensor]:
    for batch in batches_of(source, clips, processes):
        yield batch.render()


BARE, OWN, OWN_PIXELS = "bare decoder, thrown away", "this reader", "this reader, not normalised"
SPDL, ENERGON = "SPDL, threads", "Megatron-Energon + torchvision v2"
TARGETS = {  # name of the figure, wanted ratio
    BARE: ("of_bare_decoder", 0.8),
    SPDL: ("over_spdl", 1.3),
    ENERGON: ("over_energon", 2.0),
    "pytorchvideo LabeledVideoDataset": ("over_pytorchvideo", 4.0),
    "torchcodec + torchvision v2": ("over_torchcodec", 1.5),
    "decord + torchvision v2": ("over_decord", 1.5),
}


def speed(path: str, files: list[str], folder: Path) -> tuple[Table, list[Figure]]:
    """Runs all loaders in turns, each to rendered clips but for the bare decoder."""
    loaders: dict[str, Callable[[], Iterable[Any]]] = {
        OWN: from_shards(path, rendering=True),
        OWN_PIXELS: from_shards(path, rendering=False),
        BARE: from_files(BareDecoder, files),
        "pytorchvideo LabeledVideoDataset": from_pytorchvideo(files),
    }
    for name, kind in (("torchcodec", TorchCodec), ("decord", Decord)):
        if installed(kind, files):
            loaders[f"{name} + torchvision v2"] = from_files(kind, files)
    if find_spec("spdl"):
        loaders[SPDL] = from_spdl(files)
    if find_spec("megatron"):
        loaders[ENERGON] = energon.clips(energon.prepare(path, folder / "energon"))
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(ROUNDS):
        for name, start in loaders.items():
            seconds[name].append(seconds_a_clip(start))
    title = f"Clips of {FRAMES} x {SIDE} x {SIDE}, {PROCESSES} loader processes"
    made = table(title, "", "clips/s", "this reader by it")
    for name, times in seconds.items():
        rate = f"{1 / statistics.median(times):.0f}"
        made.add_row(name, rate, f"{ratio(times, seconds[OWN]):.2f}")
    figures = [
        Figure(f"reader_{figure}", ratio(seconds[name], seconds[OWN]), target)
        for name, (figure, target) in TARGETS.items()
        if name in seconds
    ]
    return made, figures


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
    """Watches the memory of reader and loader process over many distinct rows, and draws it."""
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
    made = table(f"Resident memory over {LONG_RUN:,} distinct rows", "", "MB")
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
    from data_prep.shard import main as shard

    shard(f"--source {videos} --output {folder}/set --runs {folder}/runs".split())
    return str(folder / "set")


def many_rows(path: str, folder: Path) -> str:
    """Makes a set whose tars are links to those of another, until it has enough rows."""
    shards, place = ShardSet.open(path), Folder.at(str(folder))
    rows, tars = [], []
    for copy in range(-(-LONG_RUN // len(shards))):
        table, own = shards.table, shards.tars
        keys = [f"{copy:04d}{key}" for key in table["key"].to_pylist()]
        names = [f"copy-{copy:04d}-{name}" for name in table["shard"].to_pylist()]
        table = table.set_column(0, table.schema.field("key"), pa.array(keys))
        rows.append(table.set_column(1, table.schema.field("shard"), pa.array(names)))
        linked = [f"copy-{copy:04d}-{name}" for name in own["shard"].to_pylist()]
        tars.append(own.set_column(0, own.schema.field("shard"), pa.array(linked)))
        folder.mkdir(exist_ok=True)
        for name, link in zip(own["shard"].to_pylist(), linked, strict=True):
            (folder / link).symlink_to(Path(path) / name)
    index.write_table(place, index.INDEX, pa.concat_tables(rows))
    index.write_table(place, index.SHARDS, pa.concat_tables(tars))
    write_card(place, shards.card)
    return str(folder)


def segment_files(path: str, folder: Path) -> list[str]:
    source, files = reader(path), []
    folder.mkdir()
    for number in source.first(200):
        row, tars = source.sets.find(number)
        file = folder / f"{row.key}.mp4"
        file.write_bytes(tars.read(row.shard, row.offset, row.size))
        files.append(str(file))
    return files


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
        speeds = speed(path, files, folder)
        parts = [speeds, waits, memory(many_rows(path, folder / "many"), picture)]
    finally:
        shutil.rmtree(folder)
    show([made for made, _ in parts], [f for _, figures in parts for f in figures])


if __name__ == "__main__":
    main()
