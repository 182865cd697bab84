"""Some of the faults of `make bench-faults`, each at one moment: the losses stay the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import bench_faults, bench_resume
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("faults")
    return folder, bench_resume.make_shards(folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "fault",
    ["one of two workers SIGKILL", "SIGKILL and a corrupt checkpoint"],
)
def test_a_broken_training_has_the_losses_of_a_whole_one(
    place: tuple[Path, str], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    row = bench_faults.measure(fault, 0, *place)
    assert row.equal == row.of and row.status == bench_faults.FAULTS[fault].status
