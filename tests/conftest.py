"""Fixtures: tiny videos made here, one private Ray a process, folders that leave no trace."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

# before Ray or MLflow are imported: the tests' Ray is their own, and nothing is kept outside tmp
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)
# several processes share the cores: threads that wait for each other must not keep them busy
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# a process of a second's work that watches for nodes that are drained; test_commands has it
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"

import av
import numpy as np
import psutil
import pytest
from filelock import FileLock
from hypothesis import settings
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dynamonet.stage import StageSettings
    from dynamonet.tracking.runs import TrackedRun
    from dynamonet.training import launch
    from dynamonet.training.task import Task
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


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = set[Path]()
    for item in items:
        assert isinstance(item, pytest.Function)
        if "cluster" in item.fixturenames or "browser" in item.keywords:
            item.add_marker("slow")
        if "slow" in item.keywords:
            slow.add(item.path)
    # files with the longest first, so that the processes end together: whole programs, then
    # the stages from the last to the first, then what needs no Ray
    items.sort(key=lambda item: item.path.as_posix(), reverse=True)
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "real_data" in item.keywords and not REAL_DATA.is_dir():
        pytest.skip("no real videos; DYNAMONET_REAL_DATA=DIR names a folder of them")
    if "browser" in item.keywords and BROWSER is None:
        missing = "no browser; apt install chromium"
        # what a package can provide is there where everything is to be tried
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Says in the last line what was left out, and how to get it."""
    yield
    told = session.config.pluginmanager.get_plugin("terminalreporter")
    if told is not None and (skipped := told.stats.get("skipped")):
        reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
        parts = (f"{count} ({reason})" for reason, count in reasons.items())
        told.write_line(f"left out: {', '.join(parts)}")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Indexes are mapped from files of the tests' own."""
    os.environ["DYNAMONET_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in its own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DYNAMONET_RUNS", raising=False)
    monkeypatch.delenv("DYNAMONET_SHARDS", raising=False)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray for all tests of this process."""
    import ray

    from dynamonet import cluster as engine

    with engine.connected():
        yield
    assert not ray.is_initialized()


@contextmanager
def without_ray() -> Iterator[None]:
    """Lets `launch` train in this process, where Ray is not what is tried."""
    from dynamonet import cluster
    from dynamonet.tracking.runs import TrackedRun
    from dynamonet.training import launch

    def fit(task: Task[Any], home: Path, state: launch.RunState, *_: object) -> None:
        run = TrackedRun(**state.mlflow)
        training_alone(task, run, home, queue.Queue(), origin=state.origin).run()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_fit", fit)
        patch.setattr(cluster, "connected", lambda **_: nullcontext())
        yield


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

    own = own.model_copy(update={"runs": str(home.parent)})
    return tracked_runs.start_run(stage, home.name, own, results=str(home), parents=[], datasets=[])


def training_alone(*words: Any, **more: Any) -> Trainer:
    """Returns a training in this process, without Ray; see `benchmarks.alone`."""
    from benchmarks import alone

    return alone.training_alone(*words, **more)


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

    # else bytes would differ by the run, see X264_PARAMS of data_prep; here B-frames are wanted
    options = {"x264-params": "mbtree=0"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, fps) if times is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Returns a folder that all processes of a run share; the first to need it makes it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    whole = folder.with_suffix(".whole")
    with FileLock(f"{folder}.lock"):
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed midway
            make(folder)
            whole.touch()
    return folder


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen videos of two seconds, in two class folders, with names that tempt trouble."""
    return made_once(tmp_path_factory, "videos", _write_videos)


def _write_videos(folder: Path) -> None:
    names = ["plain", "with space", "with.dots.in", "ünïcode-名", "UPPER", "x" * 60]
    for label in ("left", "right"):
        for number, name in enumerate(names):
            frames = moving_frames(24, 48, 64, seed=number)
            frames = frames if label == "right" else frames[::-1]
            write_video(folder / label / f"{name}.mp4", np.ascontiguousarray(frames))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an S3 server on this machine, known by the environment."""
    import boto3
    from moto.moto_api._internal.models import moto_api_backend
    from moto.server import ThreadedMotoServer

    moto_api_backend.reset()  # its buckets are the process's, left by tests before
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
def shard_set(
    video_folder: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """The shards of `video_folder`, labelled by class folder, made by stage 1 itself."""

    def make(root: Path) -> None:
        from data_prep.shard import main as shard

        request.getfixturevalue("cluster")  # only where the shards are made
        words = f"--source {video_folder} --dataset folder --output {root}/set --runs {root}/runs"
        more = "--encode.short_side_px 32 --min_seconds 0.5 --shard_mb 0.003 --test_share 0.4"
        shard([*words.split(), *more.split()])

    return made_once(tmp_path_factory, "made", make) / "set"


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder that may not be written to; root is somebody else meanwhile."""
    folder, root = Path(tempfile.mkdtemp()), os.geteuid() == 0
    folder.chmod(0o555)
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.rmdir()
