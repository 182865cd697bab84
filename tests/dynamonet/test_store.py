"""The file that runs are tracked in: whole or not there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from mlflow import MlflowClient

from dynamonet.tracking.store import STORE, tracking_uri

MAKE = "import sys; from dynamonet.tracking.store import tracking_uri; tracking_uri(sys.argv[1])"


def start(runs: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", MAKE, str(runs)])


def test_a_store_on_which_its_maker_was_killed_is_made_anew(tmp_path: Path) -> None:
    maker = start(tmp_path)
    while not list(tmp_path.glob(f".{STORE}-*")) and maker.poll() is None:
        time.sleep(0.01)
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    assert not (tmp_path / STORE).exists()
    uri = tracking_uri(str(tmp_path))
    assert [each.name for each in MlflowClient(uri).search_experiments()] == ["Default"]


def test_processes_that_make_a_store_at_once_share_one(tmp_path: Path) -> None:
    makers = [start(tmp_path) for _ in range(3)]
    assert [maker.wait() for maker in makers] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == [STORE]
    client = MlflowClient(tracking_uri(str(tmp_path)))
    client.create_experiment("mine")
    assert (tmp_path / STORE).stat().st_nlink == 1
