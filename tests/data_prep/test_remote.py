"""Stage 1 on an object store, and on a cluster that runs already."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import boto3
import psutil
import pytest

from data_prep.shard import main as shard
from dynamonet.shards.shard_set import ShardSet
from dynamonet.storage import Folder
from tests.conftest import ROOT, moving_frames, write_video

SMALL = "--encode.short_side_px 32 --min_seconds 0.5 --shard_mb 0.01".split()


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for number in range(4):
        name = f"{'deep/er/' * (number % 2)}{number} ü.mp4"
        write_video(tmp_path / "videos" / name, moving_frames(24, 48, 64, seed=number), fps=12)
    (tmp_path / "videos/bad.mp4").write_text("words")
    return tmp_path / "videos"


def stage_one(source: str, output: str, runs: Path, **more: str) -> None:
    words = [sys.executable, str(ROOT / "data_prep/shard.py"), "--source", source]
    words += ["--output", output, "--runs", str(runs), *SMALL]
    done = subprocess.run(
        words, env={**os.environ, **more}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr


def contents(shards: ShardSet) -> dict[str, bytes]:
    return {name: shards.folder.read(name) for name in shards.tars["shard"].to_pylist()}


@pytest.mark.timeout(600)
def test_videos_in_a_bucket_become_the_same_shards_in_a_bucket(
    videos: Path, store: str, tmp_path: Path, cluster: None
) -> None:
    local = ["--source", str(videos), "--output", str(tmp_path / "local")]
    shard([*local, "--runs", str(tmp_path / "runs"), *SMALL])
    client = boto3.client("s3")
    for path in videos.rglob("*.mp4"):
        client.upload_file(str(path), "bucket", f"raw/{path.relative_to(videos)}")
    stage_one(f"{store}/raw", f"{store}/sets/made", tmp_path / "runs")
    here, there = ShardSet.open(str(tmp_path / "local")), ShardSet.open(f"{store}/sets/made")
    assert len(there) == 4 and there.digest == here.digest
    assert contents(there) == contents(here)
    assert sum(there.card.counts.videos_quarantined.values()) == 1


@pytest.fixture
def google_store(tmp_path: Path) -> Iterator[str]:
    """What a `gs://` URI ends with to mean a Google Cloud Storage server on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).parent / "gcp-storage-emulator")
    words = ["start", "--host", "localhost", "--port", str(port), "--in-memory"]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            [program, *words, "--default-bucket", "bucket"], cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while server.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        yield f"?scheme=http&endpoint_override=localhost:{port}&retry_limit_seconds=20"
    finally:
        server.kill()
        server.wait()


@pytest.mark.timeout(600)
def test_a_bucket_of_google_is_read_and_written_like_any_other(
    google_store: str, tmp_path: Path, cluster: None
) -> None:
    source, output = (f"gs://anonymous@bucket/{name}{google_store}" for name in ("raw", "made"))
    raw = Folder.at(source)
    for number in range(4):  # by plain names: this server knows no others
        path = tmp_path / f"videos/{number}.mp4"
        write_video(path, moving_frames(24, 48, 64, seed=number), fps=12)
        raw.write(path.name, path.read_bytes())
    local = ["--source", str(tmp_path / "videos"), "--output", str(tmp_path / "local")]
    shard([*local, "--runs", str(tmp_path / "runs"), *SMALL])
    stage_one(source, output, tmp_path / "runs")
    here, there = ShardSet.open(str(tmp_path / "local")), ShardSet.open(output)
    assert len(there) == 4 and there.digest == here.digest and contents(there) == contents(here)


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_cluster_that_runs_already_does_the_work(videos: Path, tmp_path: Path) -> None:
    ray = str(Path(sys.executable).parent / "ray")
    temporary = Path(tempfile.mkdtemp(prefix="ray-"))  # short, for the names of sockets
    words = "start --head --num-cpus 1 --port 0 --include-dashboard false --disable-usage-stats"
    clean = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    head = subprocess.Popen(
        [ray, *words.split(), "--temp-dir", str(temporary), "--block"],
        env=clean,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert head.stdout is not None
        address = next(
            line.split("--address='")[1].split("'")[0]
            for line in head.stdout
            if "ray start --address=" in line
        )
        stage_one(
            str(videos), str(tmp_path / "set"), tmp_path / "runs", RAY_ADDRESS=address, **clean
        )
        assert len(ShardSet.open(str(tmp_path / "set"))) == 4
        logs = [path.name for path in temporary.rglob("worker-*.out")]
        assert logs  # the workers were that cluster's
    finally:
        family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=30)
        shutil.rmtree(temporary, ignore_errors=True)
