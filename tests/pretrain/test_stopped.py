"""A training that a signal stops, with a Ray of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import ROOT, TINY_MODEL

SHORT = "--max_steps 100000 --epochs 100000 --evaluate_every_steps 100000 --log_every_steps 2"
SHORT += " --checkpoint_every_steps 1000 --holdout_share 0.3 --precision fp32"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_signal_stops_with_a_checkpoint(shard_set: Path) -> None:
    words = ["--shards", str(shard_set), *TINY_MODEL, *SHORT.split()]
    command = [sys.executable, "-u", str(ROOT / "pretrain/run.py"), *words]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    for line in running.stdout:
        if line.startswith(b"step "):
            break
    running.send_signal(signal.SIGTERM)
    printed, error = running.communicate(timeout=120)
    assert running.returncode == 128 + signal.SIGTERM and b"Run the same command again" in error
    assert b"stopping after this step" in printed and b"stopped  after step" in printed
    (folder,) = Path("runs/pretrain").iterdir()
    state = json.loads((folder / "run.json").read_text())
    assert state["status"] == "stopped"
    (last,) = folder.glob("step-*")
    assert json.loads((last / "state.json").read_text())["step"] > 0
    client = MlflowClient(state["mlflow"]["uri"])
    assert client.get_run(state["mlflow"]["run_id"]).info.status == "KILLED"
