"""The owner's bare commands, in processes of their own: what they print and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, TINY_MODEL


def command(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("data_prep/shard.py", ["--source is missing", "--dataset ucf101"]),
        ("pretrain/run.py", ["no shards here", "python data_prep/shard.py --source VIDEOS"]),
        ("finetune/run.py", ["no shards of folder here", "--dataset folder --output"]),
    ],
)
def test_a_bare_command_says_what_is_missing_and_how_to_make_it(
    script: str, expected: list[str], tmp_path: Path
) -> None:
    done = command(str(ROOT / script), DYNAMONET_SHARDS=str(tmp_path), DYNAMONET_RUNS=str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for text in expected:
        assert text in done.stderr


def test_a_wrong_option_ends_with_status_2_and_names_the_right_one() -> None:
    done = command(str(ROOT / "finetune/run.py"), "--datset", "hmdb51")
    assert done.returncode == 2 and "did you mean dataset?" in done.stderr
    assert "Traceback" not in done.stderr


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def ray_cluster(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, dict[str, str]]]:
    """A cluster started in the project's root, as an operator would; yields the jobs' address and
    the environment that opens it.

    It has its own ports and temporary folder, asks for a token, and is ended by its own process
    ids.
    """
    temp = Path("/tmp") / f"dynamonet-ray-{os.getpid()}"  # short: sockets must fit in 107 bytes
    token = tmp_path_factory.mktemp("auth") / "token"
    token.write_text(secrets.token_hex(32))
    gcs, dashboard, client, *agents = free_ports(8)
    ray = Path(sys.executable).with_name("ray")
    names = (
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
        "node-manager-port",
    )
    ports = [f"--{name}={port}" for name, port in zip(names, agents, strict=True)]
    started = subprocess.Popen(
        [
            ray,
            "start",
            "--head",
            "--block",
            "--num-cpus=2",
            f"--port={gcs}",
            f"--temp-dir={temp}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
            "--object-store-memory=200000000",
            *ports,
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={
            **os.environ,
            "PATH": f"{ray.parent}:{os.environ['PATH']}",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
            **(auth := {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}),
        },
    )
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", dashboard)) == 0:
                break
        time.sleep(0.2)
    children = psutil.Process(started.pid).children(recursive=True)
    yield address, auth
    head = psutil.Process(started.pid)
    ours = {*children, *head.children(recursive=True), head}
    for process in ours:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(ours, timeout=30)
    shutil.rmtree(temp, ignore_errors=True)


def ray_job(
    command: str, address: str, auth: dict[str, str], *words: str
) -> subprocess.CompletedProcess[str]:
    """Runs `ray job COMMAND` on a cluster."""
    return subprocess.run(
        [Path(sys.executable).with_name("ray"), "job", command, "--address", address, *words],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=ROOT,
        env={**os.environ, **auth},
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ray_job_submit_works_in_the_root_and_from_a_shipped_copy(
    ray_cluster: tuple[str, dict[str, str]], shard_set: Path, tmp_path: Path
) -> None:
    address, auth = ray_cluster
    short = [*TINY_MODEL, *"--max_steps 2 --holdout_share 0.3 --precision fp32".split()]

    def submit(options: list[str], *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        whole = [*options, "--", "python", "pretrain/run.py", *words]
        return ray_job("submit", address, {**auth, **more}, *whole)

    runs = tmp_path / "runs"
    plain = submit([], "--shards", str(shard_set), "--runs", str(runs), "--name", "plain", *short)
    assert plain.returncode == 0, plain.stdout + plain.stderr
    assert (runs / "pretrain/plain/model/model.safetensors").is_file()
    relative = submit(["--working-dir", "."], "--shards", "motion", *short)
    assert relative.returncode != 0
    assert "temporary copy of the working folder" in relative.stdout
    shipped = submit(
        ["--working-dir", "."],
        "--shards",
        str(shard_set),
        "--runs",
        str(runs),
        "--name",
        "shipped",
        *short,
    )
    assert shipped.returncode == 0, shipped.stdout + shipped.stderr
    assert (runs / "pretrain/shipped/model/model.safetensors").is_file()
    stranger = submit([], "--help", RAY_AUTH_TOKEN_PATH=str(tmp_path / "none"), RAY_AUTH_TOKEN="no")
    assert (
        stranger.returncode != 0 and "authentication" in (stranger.stdout + stranger.stderr).lower()
    )
    shown = re.search(r"mlflow ui --backend-store-uri (\S+)", shipped.stdout)
    assert shown and shown.group(1) == f"sqlite:///{runs}/mlflow.db"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ray_job_stop_leaves_a_checkpoint_and_says_so(
    ray_cluster: tuple[str, dict[str, str]], shard_set: Path, tmp_path: Path
) -> None:
    address, auth = ray_cluster
    long = "--max_steps 100000 --epochs 100000 --log_every_steps 5 --holdout_share 0.3".split()
    more = [*"--precision fp32 --evaluate_every_steps 100000 --name stopped".split()]
    places = ["--shards", str(shard_set), "--runs", str(tmp_path)]
    words = ["python", "pretrain/run.py", *places, *TINY_MODEL, *long, *more]
    wait = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})

    def jobs(command: str, *words: str) -> str:
        done = ray_job(command, address, auth, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    own = ["--no-wait", "--submission-id", "own", "--runtime-env-json", wait, "--"]
    jobs("submit", *own, *words)
    deadline = time.monotonic() + 240
    while "\nstep " not in jobs("logs", "own"):
        assert time.monotonic() < deadline
        time.sleep(5)  # each question is a program of its own, and takes a core from the job
    jobs("stop", "own")
    assert "stopping after this step, with a checkpoint" in jobs("logs", "own")
    home = tmp_path / "pretrain/stopped"
    assert json.loads((home / "run.json").read_text())["status"] == "stopped"
    (last,) = home.glob("step-*")
    assert json.loads((last / "state.json").read_text())["step"] > 0
