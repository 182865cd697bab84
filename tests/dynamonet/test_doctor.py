"""The preflight: what it says of this machine, and of everything that can be wrong."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from dynamonet.doctor import __main__ as doctor
from dynamonet.doctor import machine, places, ray_cluster
from dynamonet.doctor.check import Check, PreflightSettings
from dynamonet.errors import SettingsError, UserError
from dynamonet.model.config import ModelConfig
from dynamonet.shards.settings import LoaderSettings
from tests.conftest import TINY_MODEL


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def only(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


def test_a_machine_that_is_ready_passes_and_keeps_nothing(
    shard_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cluster: None
) -> None:
    words = ["--shards", str(shard_set), "--precision", "fp32", *TINY_MODEL]
    found = doctor.main(words)
    assert [check for check in found if check.state == "fail"] == []
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if not line.strip().startswith("do:")]
    assert all(line.startswith(("pass  ", "warn  ")) for line in lines[:-1])
    assert lines[-1].endswith(" 0 fail")
    assert "torch 2." in only(found, "versions").text
    assert "CPU cores" in only(found, "device").text
    assert only(found, "precision").text == "on cpu: fp32"
    assert f"{shard_set}: 12 segments" in only(found, "shards").text
    assert "will be made by the first run" in only(found, "tracking").text
    assert "storage shared" in only(found, "ray nodes").text
    assert "num_workers = 1 with" in only(found, "resources").text
    assert list(tmp_path.iterdir()) == []


def test_no_shards_is_a_warning_in_a_fresh_place_and_a_failure_when_one_is_named(
    shard_set: Path, tmp_path: Path
) -> None:
    (fresh,) = places.shards(PreflightSettings())
    assert fresh.state == "warn" and "no shards in" in fresh.text
    assert fresh.remedy.endswith(f"--output {tmp_path}/data/shards/unlabelled")
    (named,) = places.shards(PreflightSettings(shards=("own",)))
    assert named.state == "fail"
    there, missing = places.shards(PreflightSettings(shards_root=str(shard_set.parent)))
    assert (there.state, missing.state) == ("pass", "fail")


def test_every_set_below_the_root_is_opened_and_a_bad_one_named(
    shard_set: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    for name in ("begun", "cut", "good", "torn"):
        shutil.copytree(shard_set, root / name)
    (root / "other").mkdir()
    (root / "begun/card.json").unlink()
    (root / "torn/card.json").write_text("{")
    victim = sorted((root / "cut").glob("*.tar"))[0]
    victim.write_bytes(victim.read_bytes()[:-1000])
    settings = PreflightSettings(shards_root=str(root), shards=("good",))
    begun, cut, good, torn = places.shards(settings)
    assert begun.state == "warn" and "did not finish" in begun.text and begun.remedy
    assert cut.state == "fail" and victim.name in cut.text
    assert cut.remedy.endswith(f"python data_prep/verify.py {root / 'cut'} --repair")
    assert good.state == "pass"
    assert torn.state == "fail" and "damaged" in torn.text and torn.remedy


def test_results_that_cannot_be_written_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (check,) = places.results(PreflightSettings(runs=str(tmp_path / "file/runs")))
    assert check.state == "fail" and "is a file" in check.text and "--runs" in check.remedy
    (remote,) = places.results(PreflightSettings(runs="s3://bucket/runs"))
    assert remote.state == "fail" and "mounted file system" in remote.text


def test_a_results_folder_without_permission_fails(locked: Path) -> None:
    (check,) = places.results(PreflightSettings(runs=str(locked)))
    assert check.state == "fail" and "Permission denied" in check.text


def test_little_disk_is_a_warning_and_less_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage("/").free / 1e9
    monkeypatch.setattr(places, "WARN_GB", 2 * free)
    (results, shards) = places.disk(PreflightSettings())
    assert (results.state, shards.state) == ("warn", "warn") and "make room" in results.remedy
    monkeypatch.setattr(places, "FAIL_GB", 2 * free)
    assert places.disk(PreflightSettings())[0].state == "fail"


def test_a_store_that_is_there_gets_a_run_and_loses_it_again(
    shard_set: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(shard_set.parent / "runs", runs)
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")

    def state() -> tuple[set[str], set[str]]:
        experiments = client.search_experiments(ViewType.ALL)
        ids = [each.experiment_id for each in experiments]
        return {each.name for each in experiments}, {r.info.run_id for r in client.search_runs(ids)}

    before = state()
    for experiment in ("dynamonet", "another"):
        (check,) = places.tracking_store(PreflightSettings(runs=str(runs), experiment=experiment))
        assert check.state == "pass" and "made and deleted" in check.text
    assert state() == before


def test_a_damaged_store_fails(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database at all, but a file of some length\n" * 99)
    (check,) = places.tracking_store(PreflightSettings(runs=str(tmp_path)))
    assert check.state == "fail" and "not a database" in check.text and check.remedy


def test_workers_that_do_not_fit_fail_with_what_to_change(cluster: None) -> None:
    checks = ray_cluster.cluster_checks(PreflightSettings(num_workers=99, cpus_per_worker=1))
    found = only(checks, "resources")
    assert found.state == "fail" and "99 of 1 CPU wanted" in found.text
    assert found.remedy.startswith("Lower num_workers")
    settings = PreflightSettings(
        num_workers=2, cpus_per_worker=1, loader=LoaderSettings(batch_size=3)
    )
    uneven = only(ray_cluster.cluster_checks(settings), "resources")
    assert uneven.state == "fail" and "does not divide" in uneven.text and uneven.remedy


def test_a_node_that_differs_from_the_driver_is_told() -> None:
    here = ray_cluster.node_facts(__file__, __file__) | {"results": True, "code": "0.1.0 abc"}
    assert ray_cluster.compare_nodes(here, "n", here).state == "pass"
    assert ray_cluster.compare_nodes(here, "n", here | {"code": "0.1.0"}).state == "pass"
    for fact, value, words in (
        ("python", "3.9.1", "Python 3.9.1"),
        ("code", "0.1.0 def", "code 0.1.0 def"),
        ("code", "0.0.9", "code 0.0.9"),
        ("results", False, "does not see the results"),
        ("shards", False, "does not see the shards"),
    ):
        check = ray_cluster.compare_nodes(here, "n", here | {fact: value})
        assert check.state == "fail" and words in check.text and check.remedy
    lost = ray_cluster.compare_nodes(here, "n", "No module named 'dynamonet'")
    assert lost.state == "fail" and "No module named" in lost.text


def test_how_ray_authenticates_is_said_without_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def text(**env: str) -> tuple[str, str]:
        for key in ("MODE", "TOKEN", "TOKEN_PATH"):
            monkeypatch.delenv(f"RAY_AUTH_{key}", raising=False)
        for key, value in env.items():
            monkeypatch.setenv(key, value)
        (check,) = ray_cluster.authentication(PreflightSettings())
        return check.state, check.text

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert text()[1].startswith("no token yet")
    assert text(RAY_AUTH_MODE="disabled") == ("pass", text(RAY_AUTH_MODE="disabled")[1])
    assert text(RAY_AUTH_MODE="maybe")[0] == "fail"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("secret-of-this-test")
    for state, words in (text(), text(RAY_AUTH_MODE="token")):
        assert state == "pass" and "~/.ray/auth_token" in words and "secret" not in words
    missing = {"RAY_AUTH_TOKEN_PATH": "gone", "RAY_ADDRESS": "127.0.0.1:1"}
    assert text(RAY_AUTH_MODE="token", **missing)[0] == "fail"


def test_the_decoder_and_the_precision_of_a_model_are_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (decoded,) = machine.decoder(PreflightSettings())
    assert decoded.state == "pass" and "H.264 written and read back" in decoded.text
    tiny = ModelConfig.model_validate(
        {"num_frames": 8, "frame_px": 32, "trunk": {"depth": 10, "width": 4, "stem_pool": False}}
    )
    (found,) = machine.precision(PreflightSettings(model=tiny, precision="bf16"))
    assert found.text.startswith("on cpu: bf16")
    assert (found.state == "pass") or found.remedy


def test_the_settings_are_those_of_pretraining_and_unknown_ones_are_told(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("num_workers: 2\nholdout_share: 0.1\nholdout_shaer: 0.1\n")
    with pytest.raises(SettingsError, match="holdout_shaer: unknown key; did you mean holdout_sha"):
        doctor.main(["--config", str(file)])
    with pytest.raises(SettingsError, match="did you mean num_workers"):
        doctor.main(["--num_worker", "2"])


def test_a_check_that_breaks_is_a_line_and_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(settings: PreflightSettings) -> list[Check]:
        raise OSError("the disk\nis on fire")

    monkeypatch.setattr(doctor, "CHECKS", {"disk": broken})
    with pytest.raises(UserError, match="not ready: disk"):
        doctor.main([])
    assert "fail  disk       OSError: the disk is on fire" in capsys.readouterr().out


@pytest.mark.slow
def test_servers_that_do_not_answer_fail_soon_and_end_with_status_1(tmp_path: Path) -> None:
    began = time.monotonic()
    command = [sys.executable, "-m", "dynamonet.doctor", "--precision", "fp32", *TINY_MODEL]
    nobody = f"127.0.0.1:{closed_port()}"
    env = {"MLFLOW_TRACKING_URI": f"http://{nobody}", "RAY_ADDRESS": nobody}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **env}
    )
    assert time.monotonic() - began < 60  # MLflow alone tries for minutes
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert f"fail  tracking   http://{nobody}: " in done.stdout
    assert f"fail  ray        {nobody} (RAY_ADDRESS) does not answer" in done.stdout
    assert "do: start the cluster, or unset RAY_ADDRESS" in done.stdout
    assert done.stderr == "error: not ready: tracking, ray\n"
