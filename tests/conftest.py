"""Fixtures: tiny videos made here, one private Ray for all tests, folders that leave no trace."""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

# before Ray or MLflow are imported: the tests' Ray is their own, and nothing is kept outside tmp
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)

import av
import boto3
import numpy as np
import psutil
import pytest
import ray
import torch
from hypothesis import settings
from moto.server import ThreadedMotoServer
from numpy.typing import NDArray

from dynamonet.stage import StageSettings
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.logs.console import Progress
from dynamonet.training.task import Job, Task

if TYPE_CHECKING:
    from dynamonet.tracking.runs import TrackedRun
    from dynamonet.training.trainer import Trainer

settings.register_profile("no clock", deadline=None)  # the machine may be shared
settings.load_profile("no clock")

ROOT = Path(__file__).parents[1]
REAL_DATA = Path(os.environ.get("DYNAMONET_REAL_DATA", ROOT / "../shared/data")).resolve()
TINY_MODEL = (
    "--model.num_frames 8 --model.frame_px 32 --model.trunk.depth 10 --model.trunk.width 4 "
    "--model.trunk.stem_pool false --model.trunk.temporal_strides 1,2,2,1 --clips.canvas_px 32 "
    "--loader.batch_size 4 --loader.processes 0"
).split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not REAL_DATA.is_dir():
        skip = pytest.mark.skip(reason=f"no real videos in {REAL_DATA} (DYNAMONET_REAL_DATA)")
        for item in items:
            if "real_data" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in its own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DYNAMONET_RUNS", raising=False)
    monkeypatch.delenv("DYNAMONET_SHARDS", raising=False)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray for all tests of the session."""
    from dynamonet import cluster as engine

    with engine.connected():
        yield
    assert not ray.is_initialized()


def stop_driver(driver: subprocess.Popen[bytes], how: signal.Signals) -> bytes:
    """Sends a signal to a driver, waits for it and for its Ray to be gone; returns its stderr."""
    started = psutil.Process(driver.pid).children(recursive=True)
    # Ray's two agents outlive a killed driver by a minute and do nothing
    workers = [child for child in started if "Agent" not in " ".join(child.cmdline())]
    driver.send_signal(how)
    _, error = driver.communicate(timeout=60)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    return error


def tracked(stage: str, home: Path, own: StageSettings) -> TrackedRun:
    """Begins a run in the tracking store beside a run's folder."""
    from dynamonet.tracking import runs as tracked_runs

    return tracked_runs.start_run(
        stage, home.name, own, experiment="dynamonet", runs_path=str(home.parent),
        results=str(home), parents=[], datasets=[],
    )  # fmt: skip


def training_alone(
    task: Task[Any], run: TrackedRun, home: Path, messages: queue.Queue[Any], **more: Any
) -> Trainer:
    """Returns a training in this process, without Ray."""
    from dynamonet.training.trainer import Trainer

    torch.set_num_threads(1)
    job = Job(task, run, {}, Progress(messages), None, home, 0, 1)  # type: ignore[arg-type]
    return Trainer(job, Rank(0, 1, torch.device("cpu")), **more)


@contextmanager
def logged(into: list[str]) -> Iterator[None]:
    """Collects what the package logs, at every level."""
    from dynamonet.training.logs.console import handling_logs

    handler = logging.Handler()
    handler.emit = lambda record: into.append(record.getMessage())
    with handling_logs(handler, logging.DEBUG):
        yield


def moving_frames(num: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Returns frames (T, H, W, 3) of a random picture that drifts two pixels a frame."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    picture = np.kron(small, np.ones((8, 8, 1), np.uint8))
    frames = [np.roll(picture, 2 * t, axis=1)[:height, :width] for t in range(num)]
    return np.stack(frames)


def write_video(
    path: Path,
    frames: NDArray[np.uint8],
    *,
    fps: int = 12,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,
) -> Path:
    """Encodes frames (T, H, W, 3).

    Args:
        times: Time stamps in milliseconds, for a variable frame rate.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    from fractions import Fraction

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, fps) if times is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen videos of two seconds, in two class folders, with names that tempt trouble."""
    folder = tmp_path_factory.mktemp("videos")
    names = ["plain", "with space", "with.dots.in", "ünïcode-名", "UPPER", "x" * 60]
    for label in ("left", "right"):
        for number, name in enumerate(names):
            frames = moving_frames(24, 48, 64, seed=number)
            frames = frames if label == "right" else frames[::-1]
            write_video(folder / label / f"{name}.mp4", np.ascontiguousarray(frames))
    return folder


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an S3 server on this machine, known by the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield "s3://bucket"
    server.stop()


@pytest.fixture(scope="session")
def shard_set(video_folder: Path, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of `video_folder`, labelled by class folder, made by stage 1 itself."""
    from data_prep.shard import main as shard

    root = tmp_path_factory.mktemp("made")
    words = f"--source {video_folder} --dataset folder --output {root}/set --runs {root}/runs"
    more = "--encode.short_side_px 32 --min_seconds 0.5 --shard_mb 0.005 --test_share 0.4"
    shard([*words.split(), *more.split()])
    return root / "set"
